"""Config files: finding them, running them, and reducing what they return to plain values.

A config file is Python with ``get_config()``, which returns a ConfigDict (frozen or not), a dict or a
dataclass. Its values may be FieldReferences, placeholders or NumPy numbers; a run keeps the plain
numbers and texts that they stand for.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict
from ml_collections.config_dict import RequiredValueError

from dit.types import UserError

VALUES = "a number, text, true or false, None, or lists and sections of these"


def directory() -> pathlib.Path:
    """Where the configs of this package are: in it once installed, beside it in a checkout."""
    here = pathlib.Path(__file__).resolve().parent
    return next((d for d in (here / "configs", here.parent / "configs") if d.is_dir()), here)


def find(path: str) -> pathlib.Path:
    """The file of a config, given its path or, like ``digits``, its name in this package.

    ``configs/digits.py`` is found from any directory. Raises UserError, with similar names, if there
    is no such file.
    """
    given = pathlib.Path(path)
    tried = [given]
    if given.parent in (pathlib.Path(), pathlib.Path("configs")):
        tried += [directory() / given.name, directory() / f"{given.name}.py"]
    try:
        found = next((file for file in tried if file.is_file()), None)
        beside = [str(file) for file in given.parent.glob("*.py")]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the config {path!r}: {error}") from error
    if found is not None:
        return found
    ours = sorted(file.stem for file in directory().glob("[!_]*.py"))
    near = difflib.get_close_matches(given.stem, ours, n=3, cutoff=0.5)
    near += difflib.get_close_matches(path, beside, n=3)
    raise UserError(
        f"no config file {path!r}; expected the path of a Python file, or one of this package: "
        + ", ".join(near or ours)
    )


def read(path: str) -> Any:
    """What ``get_config()`` of a file returns. The file is run, so it must be trusted.

    It may import a config beside it. Raises UserError, with the line, for an error in the file.
    """
    file = find(path)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"cannot read {path!r} as a config; expected a Python file, name.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # a config may import its neighbour
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no get_config(); expected a function of no arguments")
        return module.get_config()
    except UserError:
        raise
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)
        ]
        where = error.lineno if isinstance(error, SyntaxError) else [None, *lines][-1]
        at = "" if where is None else f", line {where}"
        raise UserError(
            f"error in the config {path}{at}: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(file.parent))


def overlay(config: Any, overrides: Mapping[str, Any]) -> Any:
    """``config`` with ``{"a.b": value}`` set wherever it has that field; names are left alone.

    In a ConfigDict, values that a FieldReference computes from a field follow it.
    """
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = _fields(node).get(parent)
        if (
            last != "name"
            and last in _fields(node)
            and not isinstance(_fields(node)[last], ConfigDict)
        ):
            with node.ignore_type():
                node[last] = value
    return config


def _fields(node: Any) -> dict[str, Any]:
    return dict(node.items(preserve_field_references=True)) if isinstance(node, ConfigDict) else {}


def plain(value: Any, key: str = "config") -> Any:
    """``value`` in dicts, lists, tuples, numbers and text; ``key`` is its name in messages.

    Raises UserError for what is none of these, and for a placeholder that was not filled.
    """
    try:
        return _plain(value, key)
    except RecursionError:
        raise UserError(f"{key} holds itself; expected {VALUES}") from None


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, FieldReference):
        value = _resolved(value, key)
    if isinstance(value, ConfigDict | FrozenConfigDict):
        value = dict(value.items(preserve_field_references=True))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, enum.Enum):
        value = value.value
    elif isinstance(value, pathlib.PurePath):
        value = str(value)
    elif hasattr(value, "tolist"):  # NumPy's and JAX's numbers and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        strange = [name for name in value if not isinstance(name, str)]
        if strange:
            raise UserError(f"got a field named {strange[0]!r} in {key}; expected text")
        return {name: _plain(v, f"{key}.{name}") for name, v in value.items()}
    if isinstance(value, list | tuple):
        each = [_plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
        return each if isinstance(value, list) else tuple(each)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    raise UserError(f"got {key}={shown} of type {type(value).__name__}; expected {VALUES}")


def _resolved(reference: FieldReference, key: str) -> Any:
    try:
        return reference.get()
    except RequiredValueError:
        raise UserError(f"{key} is a placeholder that was not filled: give --{key}=VALUE") from None
    except Exception as error:
        raise UserError(
            f"{key} could not be computed from other fields ({type(error).__name__}: {error})"
        ) from error
