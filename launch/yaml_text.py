"""Writes dicts, lists, strings, numbers and booleans as YAML: the subset that a manifest needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any


def yaml_text(tree: Any) -> str:
    """YAML of a tree. Multi-line strings become blocks, and ambiguous strings are quoted."""
    return "\n".join(_lines(tree)) + "\n"


def _lines(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _entry(f"{_scalar(key)}:", value)
    elif isinstance(tree, list) and tree:
        for value in tree:
            first, *rest = (
                _lines(value) if isinstance(value, dict) and value else _entry("-", value)
            )
            is_map = isinstance(value, dict) and value
            yield f"- {first}" if is_map else first
            yield from (f"  {line}" if is_map else line for line in rest)
    else:
        yield _scalar(tree)


def _entry(start: str, value: Any) -> Iterator[str]:
    """``start`` followed by a value, on the same line or, if the value has several, below it."""
    if _is_block(value):
        yield f"{start} |" if value.endswith("\n") else f"{start} |-"
        yield from (f"  {line}" if line else "" for line in value.removesuffix("\n").split("\n"))
    elif isinstance(value, dict | list) and value:
        yield start
        yield from (f"  {line}" for line in _lines(value))
    else:
        yield f"{start} {_scalar(value)}"


def _is_block(value: Any) -> bool:
    """Whether a text can be written as a block: it may contain no other line separators."""
    if not isinstance(value, str) or "\n" not in value:
        return False
    plain = all(c in "\n\t" or c.isprintable() for c in value)
    return plain and not value[0].isspace() and not value.endswith("\n\n")


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./=-]*", value, re.ASCII)
    if plain and value.lower() not in ("true", "false", "yes", "no", "on", "off", "null", "y", "n"):
        return value
    text = json.dumps(value, ensure_ascii=False, default=str)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
