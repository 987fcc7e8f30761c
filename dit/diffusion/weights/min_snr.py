"""Min-SNR: ``min(snr, gamma)`` on the error of ``x_0`` (Hang et al. 2023, eq. 9)."""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.path import snr
from dit.diffusion.process import x0_gain
from dit.diffusion.weights import Weight
from dit.types import Positive


def build(*, gamma: Positive = 5.0) -> Weight:
    """``gamma``: the paper's is 5."""

    def weight(process, t, density):
        return jnp.minimum(snr(process.path, t), gamma) * jnp.square(x0_gain(process, t))

    return weight
