"""EDM's F: the unit-variance residual (Karras et al. 2022, eq. 7), on any path.

``x0_hat = c_skip x_t + c_out F(c_in x_t)`` with, for data of standard deviation s and
``D = alpha^2 s^2 + sigma^2``: ``c_skip = alpha s^2 / D``, ``c_out = sigma s / sqrt(D)``,
``c_in = 1 / sqrt(D)``. With alpha = 1 these are the paper's; with s = 1 on a variance-preserving
path F is minus v.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.process import Prediction
from dit.types import Positive


def build(*, sigma_data: Positive = 0.5) -> Prediction:
    """``sigma_data``: the data's standard deviation."""

    def coefficients(path, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        root = jnp.sqrt(jnp.square(alpha * sigma_data) + jnp.square(sigma))
        return sigma / (sigma_data * root), -alpha * sigma_data / root

    return Prediction("edm_f", coefficients, sigma_data=sigma_data)
