"""The text of a compiled program, ``compiled.as_text()``, as instructions by computation."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``name = shape opcode(rest``. ``root``: it is what its computation returns."""

    name: str
    shape: str
    opcode: str
    rest: str
    root: bool = False

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute (``calls``, ``body``, ...) names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else None

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of the arguments."""
        depth = 1
        for i, char in enumerate(self.rest):
            depth += (char == "(") - (char == ")")
            if depth == 0:
                return tuple(re.findall(r"%([\w.\-]+)", self.rest[:i]))
        return ()


def parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """``(entry, computations)``: the name of the first computation, and the lines of all."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head.group(2)] = []
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            shape, rest = _split_shape(found.group(3))
            opcode, _, rest = rest.partition("(")
            root = found.group(1) is not None
            current.append(Instruction(found.group(2), shape, opcode.strip(), rest, root))
    return entry, computations


def _split_shape(text: str) -> tuple[str, str]:
    """The result's shape, which may be a tuple, and what follows it."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :].lstrip()
    return text, ""


def shape_bytes(shape: str) -> list[int]:
    """The bytes of each array in a shape, without padding."""
    sizes = []
    for kind, dims in _SHAPE.findall(shape):
        digits = re.search(r"\d+", kind)
        bits = _BITS.get(kind, int(digits.group()) if digits else 0)
        sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
    return sizes


def received_bytes(instruction: Instruction) -> int:
    """The bytes of a communication's result.

    An asynchronous start may show operands, results and more: ``(a, r)``, ``((a, b), (r, s))`` or, of
    an all-reduce on GPUs, ``((a), r)``; the all-reduce of a TPU shows its results alone.
    """
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and shape.startswith("("):
        operands, rest = _split_shape(shape[1:-1])
        if operands.startswith("("):
            return sum(shape_bytes(_split_shape(rest.lstrip(", "))[0]))
        if instruction.opcode != "all-reduce-start":
            return shape_bytes(shape)[1]
    return sum(shape_bytes(shape))
