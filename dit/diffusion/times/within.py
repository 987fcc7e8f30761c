"""A part of another distribution of times: those from ``low`` to ``high``, as it has them there.

One of several networks that share the times among them trains on its own (the experts of Wan 2.2, above
and below 0.875: Wan et al. 2025, as their repository has it). With the quantile ``q`` of the whole and
``F`` its inverse, the quantile of the part is ``q(F(low) + (F(high) - F(low)) u)``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit.config import parse_spec, resolve
from dit.diffusion.path import Path
from dit.diffusion.times import Quantile
from dit.types import NonNegative, UserError

HALVINGS = 30  # more than float32 has places


def build(
    *, of: str = "uniform", low: NonNegative | None = None, high: NonNegative | None = None
) -> Quantile:
    """``of``: the whole, as ``shifted:shift=5`` or ``logit_normal``; no ``low`` or ``high``: its end.

    Raises UserError for a part that is empty, when the path is known.
    """
    whole = resolve("diffusion.times", **parse_spec(of))

    def quantile(path, u):
        first, last = _part(whole, path, low, high)
        return whole(path, first + (last - first) * u)

    return quantile


def _part(
    whole: Quantile, path: Path, low: float | None, high: float | None
) -> tuple[float, float]:
    """The ``u`` of both ends."""
    with jax.ensure_compile_time_eval():
        first = 0.0 if low is None else _first(lambda u: whole(path, jnp.float32(u)) >= low)
        last = 1.0 if high is None else _first(lambda u: whole(path, jnp.float32(u)) > high)
    if not first < last:
        raise UserError(
            f"got times within low={low} and high={high}, where there are none; expected low < high, "
            f"between {path.t_min} and {path.t_max}"
        )
    return first, last


def _first(holds: Callable[[float], object]) -> float:
    """The first of the unit interval at which a monotone condition holds; 1 where it never does."""
    below, above = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        below, above = (below, middle) if np.asarray(holds(middle)) else (middle, above)
    return above
