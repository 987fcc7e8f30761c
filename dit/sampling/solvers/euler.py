"""Euler's method on the probability-flow ODE in t: order 1 (Song et al. 2021; SiT, Ma et al. 2024).

``x_u = x + (u - t) v``, ``v = alpha'(t) x0_hat + sigma'(t) eps_hat``. On straight paths (linear,
EDM) this is DDIM. The derivatives are taken at t > 0 only, since sigma' may be infinite at data,
and the last step goes to ``x0_hat``.
"""

from __future__ import annotations

from dit.diffusion.path import derivatives
from dit.sampling.solver import Solver, at, land, noise_of


def build() -> Solver:
    def step(denoise, path, x, t, u, state, keys):
        x_0 = denoise(x, at(t, x))
        _, alpha_dot, _, sigma_dot = derivatives(path, t)
        velocity = alpha_dot * x_0 + sigma_dot * noise_of(path, x, x_0, t)
        return land(u, x_0, x + (u - t) * velocity), state

    return Solver(step, order=1)
