"""Configs are data: every section is ``{name=..., **keyword arguments of a build function}``.

``resolve("sampling.solvers", "heun", **kwargs)`` imports that module and calls its ``build``; there is
no registry to edit. The error for an unknown name lists the known ones, that for an unknown keyword
prints the signature, and that for a value of the wrong type, or outside the ``Range`` in the signature,
says what was expected. Nothing is accepted and ignored.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib.util
import inspect
import json
import math
import pathlib
import pkgutil
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, Union

from beartype.door import is_bearable

from dit.types import Range, UserError

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "None",
}


def resolve(room: str, /, name: str, **kwargs) -> Any:
    """Build the thing called ``name`` in the package ``dit.<room>``.

    Raises UserError for an unknown name, keyword, or type of value.
    """
    return call(builder(room, name), f"{room.split('.')[-1]} {name!r}", **kwargs)


def package_files(package: str, missing: str) -> pathlib.Path:
    """Where the files of an installed package are; no code of it is run.

    Raises UserError, which says what is ``missing``, where it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(missing)
    return pathlib.Path(found.submodule_search_locations[0])


def builder(room: str, name: str) -> Callable:
    """The ``build`` function of ``dit.<room>.<name>``; UserError if there is none."""
    module = None
    if name.isidentifier() and name in _modules(room):
        module = importlib.import_module(f"dit.{room}.{name}")
    if module is None or not hasattr(module, "build"):
        known = names(room)
        raise UserError(f"no {room.split('.')[-1]} {name!r}: {suggest(name, known)}")
    return module.build


def names(room: str) -> list[str]:
    """The names that ``resolve`` knows in ``dit.<room>``, in alphabetical order."""
    modules = {m: importlib.import_module(f"dit.{room}.{m}") for m in _modules(room)}
    return sorted(m for m, module in modules.items() if hasattr(module, "build"))


def _modules(room: str) -> list[str]:
    package = importlib.import_module(f"dit.{room}")
    return [m.name for m in pkgutil.iter_modules(package.__path__)]


def suggest(got: str, known: list[str]) -> str:
    """``did you mean 'x'? expected one of ...`` for a message about a misspelt name."""
    close = difflib.get_close_matches(str(got), known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "expected one of " + ", ".join(known)


def call(build: Callable, what: str, /, **kwargs) -> Any:
    """Call ``build(**kwargs)`` after checking the keywords and their values against its signature.

    Whole numbers become floats, and lists tuples, where the signature asks for them.
    """
    return build(**checked(build, what, kwargs))


def checked(
    build: Callable,
    what: str,
    given: Mapping[str, Any],
    *,
    wired: Collection[str] = (),
    at: str = "",
) -> dict[str, Any]:
    """The keywords that ``call`` passes to ``build``; those in ``wired`` are added later.

    ``at`` precedes the keywords in messages. Raises UserError for unknown or missing keywords, all of
    them at once, and for values of the wrong type or outside the ``Range`` in the signature.
    """
    signature = inspect.signature(build)
    shown = f"{what} takes {_show(signature)}"
    takes, needed = keywords(build), required(build)
    unknown = [key for key in given if key not in takes]
    if unknown and not open_ended(build):
        raise UserError(
            f"unknown keyword {', '.join(map(repr, unknown))}: {suggest(unknown[0], takes)}. {shown}"
        )
    missing = [key for key in needed if key not in given and key not in wired]
    if missing:
        raise UserError(f"missing {', '.join(map(repr, missing))}: {shown}")
    hints = typing.get_type_hints(build, include_extras=True)
    return {k: fit(v, hints.get(k), f"{at}{k}", what) for k, v in given.items()}


def keywords(build: Callable) -> list[str]:
    """The names of the keywords of ``build``."""
    parameters = inspect.signature(build).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]


def required(build: Callable) -> list[str]:
    """The keywords of ``build`` that have no default."""
    parameters = inspect.signature(build).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]


def defaults(build: Callable) -> dict[str, Any]:
    """The keywords of ``build`` that have a default, and their defaults."""
    parameters = inspect.signature(build).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not p.empty}


def open_ended(build: Callable) -> bool:
    """Whether ``build`` takes any keyword, to pass it on."""
    parameters = inspect.signature(build).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def _show(signature: inspect.Signature) -> str:
    return str(signature.replace(return_annotation=inspect.Signature.empty)).replace("'", "")


def fit(value: Any, hint: Any, key: str, what: str) -> Any:
    """``value`` converted to the type ``hint``; UserError, which names ``what``, if it does not fit.

    None is ``"none"`` where nothing but text fits: a command line says both alike. There
    ``one,two`` is a tuple of text, and so is ``one``, where no text is expected.
    """
    check_finite(value, key)
    value = "none" if value is None and hint is str else value
    for converted in (value, _tuples(value), _floats(_tuples(value)), _listed(value)):
        if hint is None or fits(converted, hint):
            return converted
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = "" if number else f" of type {type(value).__name__}"
    raise UserError(f"got {key}={value!r}{kind}; expected {describe(hint)} for {what}")


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type ``hint``, and in the ``Range`` of each number in it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        ranges = [r for r in arguments[1:] if isinstance(r, Range)]
        return fits(value, arguments[0]) and all(value in r for r in ranges)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, arm) for arm in arguments)
    if typing.get_origin(hint) is tuple and isinstance(value, tuple):
        if arguments[-1] is Ellipsis:
            return all(fits(v, arguments[0]) for v in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(value, bool) and (hint is int or typing.get_origin(hint) is Literal):
        return value in [a for a in arguments if isinstance(a, bool)]
    return is_bearable(value, hint)


def describe(hint: Any) -> str:
    """A type in words, for a message."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        bounds = " ".join(str(r) for r in arguments[1:] if isinstance(r, Range))
        return f"{describe(arguments[0])} {bounds}"
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if typing.get_origin(hint) is tuple:
        several = arguments[-1] is Ellipsis
        inside = (
            f"{describe(arguments[0])}, ..." if several else ", ".join(map(describe, arguments))
        )
        return f"({inside})"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, arguments))
    return WORDS.get(hint) or getattr(hint, "__name__", str(hint))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _listed(value: Any) -> Any:
    """Text as a tuple: cut at its commas, unless these are within ``name:key=value,key=value``."""
    if not isinstance(value, str):
        return value
    items = (value,) if ":" in value else tuple(item.strip() for item in value.split(","))
    return items if all(items) else value


def _floats(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_floats, value))
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return float(value) if abs(value) < 2**53 else value


def check_finite(value: Any, key: str) -> None:
    """Raise UserError if ``value`` is, or holds, a NaN or an infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"got {key}={value}; expected a finite number")
    if isinstance(value, Mapping):
        for k, v in value.items():
            check_finite(v, f"{key}.{k}")
    if isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            check_finite(v, f"{key}[{i}]")


def literal(text: str) -> Any:
    """A Python literal if ``text`` is one (``true``, ``false`` and ``none`` too), else the text."""
    spelt = {"true": True, "false": False, "none": None, "nan": float("nan"), "inf": float("inf")}
    if text.lower() in spelt:
        return spelt[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def parse_spec(text: str, number: str | None = None) -> dict[str, Any]:
    """``"ddim:eta=0.5,clip=true"`` as ``{"name": "ddim", "eta": 0.5, "clip": True}``.

    ``number``: what a bare number means. With ``"cfg:scale"``, ``--guidance=3`` is ``cfg:scale=3``.
    Raises UserError for anything else.
    """
    if number is not None and isinstance(literal(text), int | float):
        text = f"{number}={text}"
    name, _, rest = text.partition(":")
    spec = {"name": name}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"got {text!r}; expected name or name:key=value,key=value")
        if key in spec:
            raise UserError(f"got {key!r} twice in {text!r}; expected it once")
        spec[key] = literal(value)
    return spec


def number(hint: Any, several: bool = False) -> Callable[[str], Any]:
    """An argparse ``type``: a number that fits ``hint``, or with ``several`` a list of them."""

    def parse_number(text: str) -> Any:
        try:
            items = text.split(",") if several else [text]
            found = [fit(literal(item), hint, "", "") for item in items]
        except UserError as error:
            expected = f"got {text!r}; expected {describe(hint)}"
            expected += ", or several with commas between them" if several else ""
            raise argparse.ArgumentTypeError(expected) from error
        return found if several else found[0]

    return parse_number


def fingerprint(config: Mapping[str, Any]) -> str:
    """Twelve hex digits of a hash: equal for equal configs."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
