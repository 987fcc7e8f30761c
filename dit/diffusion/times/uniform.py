"""Uniform times, continuous or on a ladder of discrete levels."""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.times import Quantile


def build(*, levels: int | None = None) -> Quantile:
    """``levels``: draw from that many evenly spaced times instead (DDPM's 1000 timesteps)."""

    def quantile(path, u):
        if levels is not None:
            u = jnp.minimum(jnp.floor(u * levels), levels - 1) / (levels - 1)
        return path.t_min + (path.t_max - path.t_min) * u

    return quantile
