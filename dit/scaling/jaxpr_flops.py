"""FLOPs of the products and convolutions in a traced program, to check formulas against.

A loop's body counts as often as it runs (a compiler's own count takes it once), a multiply-add as 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dit.types import UserError


def count_flops(function: Callable, *args) -> int:
    """FLOPs of the products and convolutions in ``function(*args)``; shapes may stand for arrays.

    Raises UserError for a ``while`` loop with a product in it: how often it runs is not known.
    """
    return count(jax.make_jaxpr(function)(*args).jaxpr)


def count(jaxpr: Any) -> int:
    """FLOPs of the products and convolutions of a jaxpr, on all devices together.

    A convolution counts its padding, but not the zeros that the gradient of one with a stride puts
    between its inputs. What is inside Pallas kernels is left out: a kernel's body is of one block, and
    blocks may be skipped.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        if name == "conv_general_dilated":
            total += _convolution(equation)
        inner = [] if name == "pallas_call" else [count(body) for body in _bodies(equation)]
        if name == "while" and any(inner):
            raise UserError(
                "got a while loop around matrix products; use a scan, whose length is known"
            )
        if name == "cond":
            total += max(inner)
        else:
            times = {"scan": lambda p: p["length"], "shard_map": lambda p: p["mesh"].size}
            total += sum(inner) * times.get(name, lambda _: 1)(equation.params)
    return total


def _convolution(equation: Any) -> int:
    """Each output sums over the window and the input channels of its group."""
    kernel, where = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    depth = math.prod(kernel) // kernel[where[0]]
    between = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * depth // between


def _bodies(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation's parameters."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")
    )
    for leaf in leaves:
        leaf = getattr(leaf, "jaxpr", leaf)
        if hasattr(leaf, "eqns"):
            yield leaf
