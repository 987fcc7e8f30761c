"""Euler-Maruyama on the reverse SDE with a free diffusion w(t) (SiT, Ma et al. 2024, eq. 6).

``dx = (v + w eps_hat / (2 sigma)) dt + sqrt(w) dW``, run from noise to data, has the path's
marginals for every ``w >= 0``. Both choices here stay finite at both ends of every path, as the
forward process's own diffusion, infinite where alpha = 0, does not (``ddpm`` integrates that one
exactly): ``w = scale sigma``, SiT's, and ``w = scale (sigma^2)'``, on EDM's path the
variance-exploding SDE. In a step so long that its new noise would be more than all there should be
at its end, w is less: its noise is then of variance ``sigma_u^2``. The last step goes to ``x0_hat``.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from dit import rng
from dit.diffusion.path import derivatives
from dit.sampling.solver import Solver, at, land, noise_of
from dit.types import NonNegative


def build(*, diffusion: Literal["sigma", "variance"] = "sigma", scale: NonNegative = 1.0) -> Solver:
    """``scale`` 0 is Euler's method."""

    def step(denoise, path, x, t, u, state, keys):
        x_0 = denoise(x, at(t, x))
        eps = noise_of(path, x, x_0, t)
        _, alpha_dot, sigma, sigma_dot = derivatives(path, t)
        per_sigma = scale * (
            1.0 if diffusion == "sigma" else jnp.maximum(2 * sigma_dot, 0)
        )  # w/sigma
        sigma_u = path.sigma(u)
        per_sigma = jnp.minimum(per_sigma, jnp.square(sigma_u) / ((t - u) * sigma))
        drift = alpha_dot * x_0 + sigma_dot * eps + 0.5 * per_sigma * eps
        fresh = jnp.sqrt((t - u) * per_sigma * sigma) * rng.normal(keys, x.shape[1:], x.dtype)
        return land(u, x_0, x + (u - t) * drift + fresh), state

    return Solver(step, order=None)
