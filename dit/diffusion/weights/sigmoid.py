"""Sigmoid weight, ``sigmoid(bias - log snr)`` on the error of ``eps`` (Kingma & Gao 2023, table 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dit.diffusion.path import logsnr
from dit.diffusion.process import determinant
from dit.diffusion.weights import Weight


def build(*, bias: float = 2.0) -> Weight:
    def weight(process, t):
        eps_gain = process.path.alpha(t) / determinant(process, t)
        return jax.nn.sigmoid(bias - logsnr(process.path, t)) * jnp.square(eps_gain)

    return weight
