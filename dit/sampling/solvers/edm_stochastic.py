"""EDM's stochastic sampler: Heun's step after a little new noise (Karras et al. 2022, algorithm 2).

Its variables are those of ``y = x / alpha``, with noise level ``tau = sigma / alpha``, so it is
the same sampler on every path. Before a step from tau, noise raises the level to ``tau (1 +
gamma)``, gamma = ``min(churn / steps, sqrt 2 - 1)`` while ``low <= tau <= high``; t_hat is the
time of that level. ``steps`` are those of the whole grid, also where only its tail is taken. The
network knows no time above t_max, so t_hat stops there: a first step at t_max has no new noise.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from dit import rng
from dit.diffusion.path import logsnr, time_of_logsnr
from dit.sampling.solver import Solver, at, land, noise_of
from dit.sampling.solvers.heun import corrected
from dit.types import NonNegative, Positive, UserError


def build(
    *,
    churn: NonNegative = 40.0,
    low: NonNegative = 0.05,
    high: Positive = 50.0,
    s_noise: NonNegative = 1.0,
) -> Solver:
    """The defaults are the paper's for ImageNet at 64 pixels (256 steps), but for ``s_noise``,
    there 1.003: above 1 the new noise is inflated, to make up for detail that a network loses.

    Raises UserError for an empty range.
    """
    if not low < high:
        raise UserError(f"got low={low}, high={high}; expected low < high")

    def raised(path, grid):
        """t_hat for each step."""
        gamma = min(churn / (grid.shape[0] - 1), math.sqrt(2) - 1)
        level = logsnr(path, grid[:-1])
        tau = jnp.exp(-0.5 * level)
        t_hat = time_of_logsnr(path, level - 2 * math.log1p(gamma))
        return jnp.where((tau >= low) & (tau <= high), jnp.maximum(t_hat, grid[:-1]), grid[:-1])

    def init(path, x, grid, start):
        return raised(path, grid), jnp.asarray(start)

    def step(denoise, path, x, t, u, state, keys):
        t_hats, n = state
        t_hat = jax.lax.dynamic_index_in_dim(t_hats, n, keepdims=False)
        noisier = t_hat > t  # never so where alpha(t) is 0
        grow = jnp.where(noisier, path.alpha(t_hat) / jnp.where(noisier, path.alpha(t), 1), 1)
        added = jnp.square(path.sigma(t_hat)) - jnp.square(grow * path.sigma(t))
        fresh = s_noise * jnp.sqrt(jnp.maximum(added, 0))
        x = grow * x + fresh * rng.normal(keys, x.shape[1:], x.dtype)
        x_0 = denoise(x, at(t_hat, x))
        eps = noise_of(path, x, x_0, t_hat)
        x_u = corrected(denoise, path, x, x_0, eps, t_hat, u)
        return land(u, x_0, x_u), (t_hats, n + 1)

    return Solver(
        step,
        order=None,
        init=init,
        evaluations=lambda n: 2 * n - 1,
        times=lambda path, grid, start=0: jnp.concatenate(
            [raised(path, grid)[start:], grid[start + 1 : -1]]
        ),
    )
