"""Min-SNR: ``min(snr, gamma)`` on the error of ``x_0`` (Hang et al. 2023, eq. 9)."""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.path import snr
from dit.diffusion.process import x0_gain
from dit.diffusion.weights import Weight
from dit.types import UserError


def build(*, gamma: float = 5.0) -> Weight:
    """Raises UserError unless ``gamma`` is positive."""
    if not gamma > 0:
        raise UserError(f"got gamma={gamma} for min-SNR; expected a positive number (the paper: 5)")

    def weight(process, t, density):
        return jnp.minimum(snr(process.path, t), gamma) * jnp.square(x0_gain(process, t))

    return weight
