"""A Gaussian mixture: its exact denoiser on every path, and its probability-flow map in float64.

For data from ``sum_k w_k N(m_k, S_k)`` the noised density is a mixture with means ``alpha m_k``
and covariances ``alpha^2 S_k + sigma^2 I``, and ``E[x_0 | x_t]`` is a closed form. Samples are ``b
1 1 1 d``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

MEANS = np.array([[0.8, 0.3], [-0.6, 0.5], [0.1, -0.7]])
FACTORS = np.array([[[0.5, 0.1], [0.0, 0.3]], [[0.3, 0.0], [-0.2, 0.4]], [[0.4, 0.2], [0.1, 0.4]]])
COVARIANCES = FACTORS @ FACTORS.transpose(0, 2, 1)
WEIGHTS = np.array([0.4, 0.35, 0.25])


def posterior_mean(x, alpha, sigma, xp):
    """``E[x_0 | x_t]`` for points ``(b, d)`` and scalar alpha and sigma, in numpy or jax.numpy."""
    dtype = x.dtype
    values, vectors = (a.astype(dtype) for a in np.linalg.eigh(COVARIANCES))  # k d, k d d
    means, log_weights = MEANS.astype(dtype), np.log(WEIGHTS).astype(dtype)
    local = xp.einsum("kde,bkd->bke", vectors, x[:, None] - alpha * means[None])
    spread = alpha**2 * values + sigma**2  # k d
    logits = log_weights[None] - 0.5 * (local**2 / spread[None] + xp.log(spread)[None]).sum(-1)
    weight = xp.exp(logits - logits.max(-1, keepdims=True))
    weight = weight / weight.sum(-1, keepdims=True)
    shift = xp.einsum("kde,bke->bkd", vectors, alpha * values[None] / spread[None] * local)
    return (weight[..., None] * (means[None] + shift)).sum(1)


def denoiser(path):
    """The exact ``denoise(x_t, t)``, in the dtype of ``x_t``."""

    def one(x, t):  # one sample: its time may differ from the others'
        return posterior_mean(x.reshape(1, -1), path.alpha(t), path.sigma(t), jnp).reshape(x.shape)

    return lambda x, t: jax.vmap(one)(x, t).astype(x.dtype)


def flow(x_T, alpha, sigma):
    """``x_0`` at the end of the probability-flow ODE from ``x_T``, to about 1e-10.

    On the unit circle ``alpha = cos a, sigma = sin a``, where every path's flow is the same curve
    up to scale: ``dx/da = -sin a x0_hat + cos a eps_hat``, which has no singular end in closed
    form.
    """
    radius = np.hypot(alpha, sigma)
    shape = x_T.shape

    def slope(a, z):
        z = z.reshape(shape)
        c, s = np.cos(a), np.sin(a)
        x_0 = posterior_mean(z, c, s, np)
        # eps_hat = (z - c x_0) / s, so that the slope is (c z - x_0) / s, which is 0 / 0 at data.
        return ((c * z - x_0) / s).ravel()

    start = np.arctan2(sigma, alpha)
    end = 1e-5  # the slope is about s there, so what is left changes x_0 by 1e-10
    solution = solve_ivp(
        slope, (start, end), (x_T / radius).ravel(), method="DOP853", rtol=1e-11, atol=1e-12
    )
    return solution.y[:, -1].reshape(shape)


def moments():
    """Mean and covariance of the data."""
    mean = WEIGHTS @ MEANS
    second = np.einsum("k,kde->de", WEIGHTS, COVARIANCES + MEANS[:, :, None] * MEANS[:, None])
    return mean, second - np.outer(mean, mean)
