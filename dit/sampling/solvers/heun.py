"""Heun's method on the probability-flow ODE: order 2 (Karras et al. 2022, algorithm 1, on any
path).

``x_u = x_t + int x0_hat d alpha + int eps_hat d sigma``, both integrals by the trapezoidal rule.
The integration variables are alpha and sigma themselves, not t, so sigma' (infinite at data on the
DDPM path) never enters, and the predictor is DDIM. On straight paths this is Heun's method in t.
The last step goes to ``x0_hat`` without a second evaluation: ``2 steps - 1`` in all.

Written as DDIM and a correction, ``x_u = alpha_u (D_t + w (D_u - D_t)) + sigma_u eps_hat`` with ``w =
(1 - exp(-h)) sigma_t / (2 sigma_u)``. Of a short step w is h / 2; then it grows like exp(h), while
the exact integral of an estimate that is linear in log-SNR has ``w = 1 - (1 - exp(-h)) / h``, below
1. So where w would be above 2, in a step that divides the noise level by five or more, it is 1: in
runs of two or three steps the samples would come out at half the size of the noise.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.sampling.denoisers import evaluate_if
from dit.sampling.solver import Solver, at, land, noise_of, starts_and_ends, transition

LONGEST = 2.0  # w up to which the trapezoidal rule is used


def build() -> Solver:
    def step(denoise, path, x, t, u, state, keys):
        x_0 = denoise(x, at(t, x))
        eps = noise_of(path, x, x_0, t)
        return land(u, x_0, corrected(denoise, path, x, x_0, eps, t, u)), state

    return Solver(step, order=2, evaluations=lambda n: 2 * n - 1, times=starts_and_ends)


def corrected(denoise, path, x, x_0, eps, t, u):
    """``x_u`` by the trapezoidal rule; at ``u = 0``, where the network is not evaluated, by
    DDIM."""
    _, sigma_t, alpha_u, sigma_u, decay = transition(path, t, u)
    predicted = alpha_u * x_0 + sigma_u * eps
    x_0_u = evaluate_if(jnp.any(u > 0), denoise, predicted, at(u, x), x_0)
    w = 0.5 * (1 - decay) * sigma_t / jnp.where(u > 0, sigma_u, 1)
    return predicted + jnp.where(w > LONGEST, 1.0, w) * alpha_u * (x_0_u - x_0)
