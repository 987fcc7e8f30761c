"""Optimizers, one a file; ``build(**kwargs) -> make``, and ``make(schedule, axes)`` is Optax's.

``axes`` is the tree of logical axis names of the parameters. It says what a number of dimensions cannot:
``("layers", "mlp")`` is a stack of biases, ``("layers", "embed", "mlp")`` one of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from dit.parallel.rules import Axes, is_axes

Make = Callable[[optax.Schedule, Any], optax.GradientTransformation]


def one_layer(axes: Axes) -> Axes:
    """The axes of a parameter of a single layer."""
    return tuple(a for a in axes if a != "layers")


def decayed(axes: Any) -> Any:
    """The weight-decay mask: true for matrices; not for biases, norms, other vectors, embeddings."""
    return jax.tree.map(
        lambda a: len(one_layer(a)) >= 2 and "vocab" not in a, axes, is_leaf=is_axes
    )
