"""How often a loop of a compiled program runs, from its text.

On some platforms (never on TPUs) XLA writes ``known_trip_count`` beside some loops. For the others the
count is derived here. A loop carries a tuple. If an element ``i`` starts at ``a``, grows by ``d`` on
each trip and the condition is ``i < n``, the loop runs ``ceil((n - a) / d)`` times. Start, step and
limit are traced through tuples, copies, fusions and calls; the limit may itself be an element that the
loop leaves unchanged. If several comparisons must hold, the first to fail decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from dit.parallel.hlo_text import Instruction

Computations = Mapping[str, Mapping[str, Instruction]]  # by name, and their lines by name
SAME = ("copy", "convert", "bitcast", "reshape", "copy-start", "copy-done", "opt-barrier")
FLIPPED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}


@dataclasses.dataclass(frozen=True)
class Number:
    """``offset``, plus element ``element`` of the loop's tuple unless that is None."""

    element: int | None
    offset: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """``element + offset DIRECTION limit``, with the two sides as found."""

    left: Number
    right: Number
    direction: str


class Scope:
    """A computation and the values of its parameters; without ``arguments``, a loop's tuple."""

    def __init__(
        self,
        computations: Computations,
        name: str | None,
        arguments: Sequence[Number | None] | None = None,
    ):
        self._all, self._arguments = computations, arguments
        self._lines = computations.get(name or "", {})
        self.root = next((line for line in self._lines.values() if line.root), None)

    def number(self, name: str) -> Number | None:
        """What is known about an integer."""
        line = self._lines.get(name)
        if line is None:
            return None
        if line.opcode == "constant":
            found = re.match(r"(-?\d+)\)", line.rest)
            return Number(None, int(found.group(1))) if found else None
        if line.opcode == "parameter":
            index = int(re.match(r"\d+", line.rest).group())
            return self._arguments[index] if self._arguments else None
        if line.opcode == "get-tuple-element":
            index = int(re.search(r"\bindex=(\d+)", line.rest).group(1))
            return self.element(line.operands[0], index)
        if line.opcode in SAME:
            return self.number(line.operands[0])
        if line.opcode in ("add", "subtract"):
            a, b = map(self.number, line.operands)
            return _sum(a, b, 1 if line.opcode == "add" else -1)
        if line.opcode in ("fusion", "call"):
            inner = self._inside(line)
            return inner.number(inner.root.name) if inner.root else None
        return None

    def element(self, name: str, index: int) -> Number | None:
        """The same for one element of a tuple."""
        line = self._lines.get(name)
        if line is None:
            return None
        if line.opcode == "tuple":
            return self.number(line.operands[index])
        if line.opcode == "parameter" and self._arguments is None:
            return Number(index, 0)
        if line.opcode in SAME:
            return self.element(line.operands[0], index)
        if line.opcode in ("fusion", "call"):
            inner = self._inside(line)
            return inner.element(inner.root.name, index) if inner.root else None
        if line.opcode == "while":
            kept = Scope(self._all, line.called("body")).returned(index) == Number(index, 0)
            return self.element(line.operands[0], index) if kept else None
        return None

    def returned(self, index: int) -> Number | None:
        """One element of the tuple that the computation returns."""
        return self.element(self.root.name, index) if self.root else None

    def comparisons(self, line: Instruction | None = None) -> list[Comparison]:
        """The known conditions for the result, a boolean, to be true."""
        line = self.root if line is None else line
        if line is None:
            return []
        if line.opcode == "compare":
            left, right = map(self.number, line.operands)
            way = re.search(r"direction=(\w+)", line.rest)
            known = left is not None and right is not None and way is not None
            return [Comparison(left, right, way.group(1))] if known else []
        if line.opcode in ("and", *SAME):
            inputs = (self._lines[name] for name in line.operands if name in self._lines)
            return [found for each in inputs for found in self.comparisons(each)]
        return self._inside(line).comparisons() if line.opcode in ("fusion", "call") else []

    def _inside(self, line: Instruction) -> Scope:
        arguments = [self.number(name) for name in line.operands]
        return Scope(self._all, line.called("calls") or line.called("to_apply"), arguments)


def trips(loop: Instruction, where: str, computations: Computations) -> int:
    """How often the body of ``loop``, in the computation ``where``, runs; 1 if unknown."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known.group(1))
    outside, body = Scope(computations, where), Scope(computations, loop.called("body"))
    counted = [
        count
        for held in Scope(computations, loop.called("condition")).comparisons()
        if (count := _count(held, loop.operands[0], outside, body)) is not None
    ]
    return min(counted, default=1)


def _count(held: Comparison, start: str, outside: Scope, body: Scope) -> int | None:
    """The number of trips until a comparison fails, or None."""
    counter, limit, way = held.left, held.right, held.direction
    grows = body.returned(counter.element) if counter.element is not None else None
    if counter.element is None or grows == Number(counter.element, 0):
        counter, limit, way = limit, counter, FLIPPED.get(way, way)
    if counter.element is None or way not in FLIPPED:
        return None
    if limit.element is not None:
        kept = body.returned(limit.element) == Number(limit.element, 0)
        before = outside.element(start, limit.element) if kept else None
        if before is None or before.element is not None:
            return None
        limit = Number(None, before.offset + limit.offset)
    grows = body.returned(counter.element)
    step = 1 if way in ("LT", "LE", "NE") else -1
    if grows is not None and grows.element == counter.element:
        step = grows.offset
    first = outside.element(start, counter.element)
    a = first.offset if first is not None and first.element is None else 0
    left = limit.offset - counter.offset - a
    if way in ("GT", "GE"):
        left, step = -left, -step
    if step <= 0 and way != "NE":
        return None
    if way in ("LE", "GE"):
        left += 1
    return max(0, -(-left // step)) if step else None


def _sum(a: Number | None, b: Number | None, sign: int) -> Number | None:
    if a is None or b is None or (b.element is not None and (a.element is not None or sign < 0)):
        return None
    element = a.element if b.element is None else b.element
    return Number(element, a.offset + sign * b.offset)
