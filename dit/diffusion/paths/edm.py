"""The variance-exploding path in EDM's units, ``alpha = 1``, ``sigma = t`` (Karras et al. 2022)."""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.path import Path
from dit.types import Positive


def build(
    *, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0, sigma_data: Positive = 0.5
) -> Path:
    """Time *is* the noise level. The network is told ``log(sigma) / 4`` and a unit-variance input.

    Of clean data, beside noisy ones in a sample, it is told ``sigma_min``.
    """
    return Path(
        alpha=jnp.ones_like,
        sigma=lambda t: t,
        t_min=sigma_min,
        t_max=sigma_max,
        c_noise=lambda t: jnp.log(jnp.where(t < sigma_min, sigma_min, t)) / 4,
        sigma_data=sigma_data,
    )
