"""Sigmoid weight over log-SNR, ``w(l) = sigmoid(bias - l)`` (Kingma & Gao 2023, table 1).

The loss is ``1/2 integral of w(l) |eps_hat - eps|^2 dl`` (their eq. 2, and Hoogeboom et al. 2024). For
times drawn with density p it takes the factor ``w(l) |dl/dt| / (2 p(t))`` on the error of ``eps``, and
so weighs a noise level the same on every path and with every distribution of times.
"""

from __future__ import annotations

import math
from typing import Annotated

import jax.numpy as jnp

from dit.diffusion.path import derivatives
from dit.diffusion.process import determinant
from dit.diffusion.weights import Weight
from dit.types import Range


def build(*, bias: Annotated[float, Range(-80, 80)] = 2.0) -> Weight:
    """``bias``: the log-SNR from which on levels count less and less; more of it, more fine detail."""

    def weight(process, t, density):
        # With w = sigma^2 / (sigma^2 + e^-bias alpha^2), |dl/dt| = 2 |W| / (alpha sigma) and an output
        # error e being alpha e / det in eps, what is infinite at either end of a path cancels.
        alpha, alpha_dot, sigma, sigma_dot = derivatives(process.path, t)
        wronskian = jnp.abs(alpha_dot * sigma - alpha * sigma_dot)
        total = jnp.square(sigma) + math.exp(-bias) * jnp.square(alpha)
        det = determinant(process, t)
        return wronskian * alpha * sigma / (total * jnp.square(det) * density)

    return weight
