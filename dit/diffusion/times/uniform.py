"""Uniform times, continuous or on a ladder of discrete levels."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from dit.diffusion.times import Quantile
from dit.types import Range


def build(*, levels: Annotated[int, Range(2, 10**6)] | None = None) -> Quantile:
    """``levels``: draw from that many evenly spaced times instead (DDPM's 1000 timesteps).

    Both ends are among them.
    """

    def quantile(path, u):
        if levels is not None:  # a step function, with the density of the times that it stands for
            level = jnp.minimum(jnp.floor(u * levels), levels - 1) / (levels - 1)
            u = u + jax.lax.stop_gradient(level - u)
        return path.t_min + (path.t_max - path.t_min) * u

    return quantile
