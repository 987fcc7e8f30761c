"""Configs are data: every section is ``{name=..., **keyword arguments of a build function}``.

``resolve("sampling.solvers", "heun", **kwargs)`` imports that module and calls its ``build``; there is
no registry to edit. An unknown name lists the names there are, an unknown or ill-typed keyword prints
the signature, and a number that is not finite is refused: nothing is accepted and ignored.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import math
import pkgutil
import typing
from collections.abc import Callable, Mapping
from typing import Any

from beartype.door import is_bearable

from dit.types import UserError


def resolve(room: str, name: str, **kwargs) -> Any:
    """Build the thing called ``name`` in the package ``dit.<room>``.

    Raises UserError for an unknown name, keyword, or type of value.
    """
    return call(builder(room, name), f"{room.split('.')[-1]} {name!r}", **kwargs)


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
    signature = inspect.signature(build)
    parameters = signature.parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = typing.get_type_hints(build)
    shown = f"{what} takes {_show(signature)}"
    for key in kwargs:
        if key not in parameters and not open_ended:
            raise UserError(f"unknown keyword {key!r}: {suggest(key, list(parameters))}. {shown}")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY and p.name not in kwargs
    ]
    if missing:
        raise UserError(f"missing {', '.join(map(repr, missing))}: {shown}")
    return build(**{k: _fit(v, hints.get(k), k, shown) for k, v in kwargs.items()})


def _show(signature: inspect.Signature) -> str:
    return str(signature.replace(return_annotation=inspect.Signature.empty)).replace("'", "")


def _fit(value: Any, hint: Any, key: str, shown: str) -> Any:
    check_finite(value, key)
    if hint is None or is_bearable(value, hint):
        return value
    for converted in (_tuples(value), _floats(_tuples(value))):
        if is_bearable(converted, hint):
            return converted
    raise UserError(f"got {key}={value!r} of type {type(value).__name__}; expected {hint}. {shown}")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _floats(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_floats, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


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


def fingerprint(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that are equal exactly when two configs say the same."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
