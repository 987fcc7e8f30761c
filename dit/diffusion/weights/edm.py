"""EDM's weight, ``(sigma^2 + s^2) / (sigma s)^2`` on the error of ``x_0`` (Karras et al. 2022, table 1).

On a path with alpha below 1, sigma stands for the noise-to-signal ratio. The weight is the inverse of
``c_out^2``, so on EDM's F it is one. Infinite at ``t = 0`` for an ``x_0`` prediction: give the path a
``t_min``.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.process import determinant
from dit.diffusion.weights import Weight
from dit.types import Positive


def build(*, sigma_data: Positive = 0.5) -> Weight:
    def weight(process, t, density):
        alpha, sigma = process.path.alpha(t), process.path.sigma(t)
        variance = jnp.square(alpha * sigma_data) + jnp.square(sigma)
        return variance / jnp.square(sigma_data * determinant(process, t))

    return weight
