"""DDIM (Song, Meng & Ermon 2020, eq. 12), on any path: order 1, or stochastic with ``eta > 0``.

``x_u = alpha_u x0_hat + sqrt(sigma_u^2 - s^2) eps_hat + s z`` with ``s = eta sigma_u sqrt(1 -
exp(-2h))``, eq. 16 without its assumption that the path is variance preserving. ``eta = 1`` is
DDPM's ancestral step with the small variance.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit import rng
from dit.sampling.solver import Solver, at, land, noise_of, transition
from dit.types import Fraction


def build(*, eta: Fraction = 0.0) -> Solver:
    """``eta``: share of the ancestral noise, from 0 (deterministic) to 1 (ancestral)."""

    def step(denoise, path, x, t, u, state, keys):
        x_0 = denoise(x, at(t, x))
        _, _, alpha_u, sigma_u, decay = transition(path, t, u)
        fresh = eta * jnp.sqrt(1 - jnp.square(decay))  # of the noise left at u, new
        x_u = alpha_u * x_0 + sigma_u * jnp.sqrt(1 - fresh**2) * noise_of(path, x, x_0, t)
        if eta > 0:
            x_u += sigma_u * fresh * rng.normal(keys, x.shape[1:], x.dtype)
        return land(u, x_0, x_u), state

    return Solver(step, order=None if eta else 1)
