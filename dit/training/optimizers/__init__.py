"""Optimizers, one a file; ``build(**kwargs) -> make``, and ``make(schedule, axes)`` is Optax's.

``axes`` is the tree of logical axis names of the parameters. It tells apart what the number of
dimensions cannot: ``("layers", "mlp")`` is a stack of biases, ``("layers", "embed", "mlp")`` a stack of
matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from dit.parallel.rules import Axes, is_axes

Make = Callable[[optax.Schedule, Any], optax.GradientTransformation]


def groups(axes: Axes) -> list[tuple[int, ...]]:
    """The dimensions of one matrix or vector, of which a parameter may hold a stack.

    ``layers`` and None (query, key and value in one array) stack; ``heads`` and ``head_dim`` side by
    side are one axis, and so is the window of a convolution with the channels that it reads.
    ``("layers", "embed", None, "heads", "head_dim")`` gives ``[(1,), (3, 4)]``, and
    ``("spatial", "spatial", "embed", "embed_out")`` gives ``[(0, 1, 2), (3,)]``.
    """
    found: list[tuple[int, ...]] = []
    for i, name in enumerate(axes):
        before = axes[i - 1] if i else None
        if (before == "heads" and name == "head_dim") or before == "spatial":
            found[-1] += (i,)
        elif name not in (None, "layers"):
            found.append((i,))
    return found


def is_matrix(axes: Axes) -> bool:
    """Whether a parameter is a linear map or a stack of them, not a bias, norm or embedding table."""
    return len(groups(axes)) >= 2 and "classes" not in axes


def decayed(axes: Any) -> Any:
    """The weight-decay mask over a tree of axes: true for linear maps only."""
    return jax.tree.map(is_matrix, axes, is_leaf=is_axes)
