"""Guidance in a limited interval of noise levels (Kynkäänniemi et al. 2024), free of cost outside
it.

``D = D_u + w (D_c - D_u)`` while the level lies in ``(low, high]``, else ``D = D_c`` by one
evaluation.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from dit.diffusion.process import Denoiser
from dit.sampling.guidance import Guidance, extrapolate, off
from dit.types import Count, NonNegative, Scale, UserError, match_time


def build(
    *,
    scale: Scale,
    low: NonNegative = 0.28,
    high: NonNegative = 2.9,
    unit: Literal["noise", "time"] = "noise",
    channels: Count | None = None,
) -> Guidance:
    """``unit``: levels are ``sigma / alpha`` (the paper's sigma; the defaults are its best for
    EDM2-S), or times t. ``channels``: guide only the first so many, as LightningDiT's samples were
    (3 of 32); the default is all. Raises UserError for an empty interval."""
    if not low < high:
        raise UserError(f"got low={low}, high={high}; expected low < high, in units of {unit}")
    if scale == 1:
        return off()

    def inside(path, t):
        level = t if unit == "time" else path.sigma(t) / path.alpha(t)
        return (level > low) & (level <= high)

    def guide(pair, path, grid):
        def guided(x, t):
            (x_0, v), (x_0_u, _) = pair.both(x, t)
            on = inside(path, match_time(t, x))
            return jnp.where(on, extrapolate(x_0, x_0_u, scale, channels), x_0), v

        def full(x, t):
            return jax.lax.cond(jnp.any(inside(path, t)), guided, pair.conditional.full, x, t)

        return Denoiser(full)

    return Guidance(guide, lambda path, t: jnp.where(inside(path, t), 2, 1))
