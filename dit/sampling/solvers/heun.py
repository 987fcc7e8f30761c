"""Heun's method on the probability-flow ODE: order 2 (Karras et al. 2022, algorithm 1, on any
path).

``x_u = x_t + int x0_hat d alpha + int eps_hat d sigma``, both integrals by the trapezoidal rule.
The integration variables are alpha and sigma themselves, not t, so sigma' (infinite at data on the
DDPM path) never enters, and the predictor is DDIM. On straight paths this is Heun's method in t.
The last step goes to ``x0_hat`` without a second evaluation: ``2 steps - 1`` in all.
"""

from __future__ import annotations

from dit.sampling.denoisers import evaluate_if
from dit.sampling.solver import Solver, at, interval, land, noise_of, starts_and_ends


def build() -> Solver:
    def step(denoise, path, x, t, u, state, keys):
        x_0 = denoise(x, at(t, x))
        eps = noise_of(path, x, x_0, t)
        return land(u, x_0, corrected(denoise, path, x, x_0, eps, t, u)), state

    return Solver(step, order=2, evaluations=lambda n: 2 * n - 1, times=starts_and_ends)


def corrected(denoise, path, x, x_0, eps, t, u):
    """``x_u`` by the trapezoidal rule; at ``u = 0``, where the network is not evaluated, by
    DDIM."""
    alpha_t, sigma_t, alpha_u, sigma_u, _ = interval(path, t, u)
    predicted = alpha_u * x_0 + sigma_u * eps
    x_0_u = evaluate_if(u > 0, denoise, predicted, at(u, x), x_0)
    eps_u = (predicted - alpha_u * x_0_u) / sigma_u
    by_alpha = 0.5 * (alpha_u - alpha_t) * (x_0 + x_0_u)
    by_sigma = 0.5 * (sigma_u - sigma_t) * (eps + eps_u)
    return x + by_alpha + by_sigma
