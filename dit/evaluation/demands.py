"""Demands on the figures of an evaluation, for scripts and CI: ``frechet_matched<=2*frechet_floor``.

A demand is a comparison, ``<=``, ``<``, ``>=`` or ``>``, of two expressions made of the names of
figures, numbers, ``+ - * /`` and brackets. No demand is met by a figure that is NaN.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping

from dit.types import UserError

COMPARISONS: dict[type, tuple[str, Callable[[float, float], bool]]] = {
    ast.LtE: ("<=", operator.le),
    ast.Lt: ("<", operator.lt),
    ast.GtE: (">=", operator.ge),
    ast.Gt: (">", operator.gt),
}
ARITHMETIC: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST = 200  # characters: more than any demand needs, too few for a number to overflow


@dataclasses.dataclass(frozen=True)
class Demand:
    """A comparison of figures, with its source text; ``parse`` makes one."""

    text: str
    tree: ast.Compare

    def check(self, figures: Collection[str], left_out: Mapping[str, str]) -> None:
        """Raise UserError for a name that is not in ``figures``; ``left_out`` explains some of them."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Name) or node.id in figures:
                continue
            if node.id in left_out:
                why = f"is not measured here: {left_out[node.id]}"
            else:
                near = difflib.get_close_matches(node.id, figures, 1)
                why = f"is no figure; there are {', '.join(figures)}"
                why += f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"got the demand {self.text!r}, but {node.id!r} {why}")

    def failure(self, figures: Mapping[str, float]) -> str | None:
        """None if ``figures`` meet the demand, else one line with their values."""
        left, right = (_value(side, figures) for side in (self.tree.left, self.tree.comparators[0]))
        sign, holds = COMPARISONS[type(self.tree.ops[0])]
        if holds(left, right):
            return None
        return f"{self.text}: {left:.5g} {sign} {right:.5g} does not hold"


def parse(text: str) -> Demand:
    """Parse the demand ``text``; UserError if it is not one."""
    wrong = UserError(
        f"got the demand {text!r}; expected one comparison of figures and numbers, such as "
        "'accuracy>=0.97' or 'frechet_matched<=2*frechet_floor'"
    )
    try:
        tree = ast.parse(text.strip(), mode="eval").body if len(text) <= LONGEST else None
    except (SyntaxError, ValueError) as error:
        raise wrong from error
    if (
        not isinstance(tree, ast.Compare)
        or len(tree.ops) != 1
        or type(tree.ops[0]) not in COMPARISONS
    ):
        raise wrong
    nodes = [n for side in (tree.left, tree.comparators[0]) for n in ast.walk(side)]
    if not all(map(_allowed, nodes)) or not any(isinstance(n, ast.Name) for n in nodes):
        raise wrong
    return Demand(text.strip(), tree)


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float) and math.isfinite(node.value)
    if isinstance(node, ast.BinOp):
        return type(node.op) in ARITHMETIC
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub)
    return isinstance(node, (ast.Name, *ARITHMETIC, ast.USub, ast.Load))


def _value(node: ast.expr, figures: Mapping[str, float]) -> float:
    """NaN for a division by zero, so that every comparison fails."""
    if isinstance(node, ast.Name):
        return float(figures[node.id])
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, figures)
    assert isinstance(node, ast.BinOp)
    left, right = _value(node.left, figures), _value(node.right, figures)
    if isinstance(node.op, ast.Div) and right == 0:
        return math.nan
    return ARITHMETIC[type(node.op)](left, right)


def lines(figures: Mapping[str, float]) -> Iterator[str]:
    """A line a figure; one with ``_low`` and ``_high`` has them beside it."""
    bounds = {f"{name}{end}": name for name in figures for end in ("_low", "_high")}
    for name, value in figures.items():
        if name not in bounds:
            ends = [figures.get(f"{name}{end}") for end in ("_low", "_high")]
            between = "" if None in ends else "  ({:.4g} to {:.4g})".format(*ends)
            yield f"{name:24} {value:.5g}{between}"
