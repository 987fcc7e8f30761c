"""The Gaussian posterior ``q(x_s | x_t, x_0)`` of one reverse step, from ``t`` down to ``s < t``.

Ho et al. 2020, eqs. 6-7, written for any path and any pair of times. With
``alpha_ts = alpha_t / alpha_s`` and ``beta = sigma_t^2 - alpha_ts^2 sigma_s^2``, the variance of the
forward step from s to t, the mean is ``(alpha_ts sigma_s^2 x_t + alpha_s beta x_0) / sigma_t^2`` and the
variance ``beta sigma_s^2 / sigma_t^2``.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.diffusion.path import Path


def forward_variance(path: Path, t: Float[Array, "*s"], s: Float[Array, "*s"]) -> Array:
    """``beta = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2``: the noise that the step s to t adds."""
    kept = path.alpha(t) / path.alpha(s) * path.sigma(s)
    return (path.sigma(t) - kept) * (path.sigma(t) + kept)


def posterior_mean(
    path: Path, x_0: Float[Array, "..."], x_t: Float[Array, "..."], t: Array, s: Array
) -> Array:
    """The posterior mean; ``t`` and ``s`` broadcast against the data. It is ``x_0`` at ``s = 0``."""
    alpha_ts = path.alpha(t) / path.alpha(s)
    from_data = path.alpha(s) * forward_variance(path, t, s) * x_0
    return (alpha_ts * jnp.square(path.sigma(s)) * x_t + from_data) / jnp.square(path.sigma(t))


def posterior_variance(path: Path, t: Float[Array, "*s"], s: Float[Array, "*s"]) -> Array:
    """The posterior variance ("beta tilde"): zero at ``s = 0``."""
    return forward_variance(path, t, s) * jnp.square(path.sigma(s) / path.sigma(t))


def log_variance(path: Path, v: Array | None, t: Array, s: Array) -> Array:
    """The log variance that a network's ``v`` in [-1, 1] stands for (Nichol & Dhariwal 2021, eq. 15).

    An interpolation from the posterior variance (-1, and what None gives) to the forward one (+1).
    At ``s = 0``, where the posterior variance is zero, that of the step before stands in for it.
    """
    first = s <= 0
    small = posterior_variance(path, jnp.where(first, 2 * t, t), jnp.where(first, t, s))
    low = jnp.log(small)
    if v is None:
        return low
    fraction = 0.5 * (v + 1)
    return fraction * jnp.log(forward_variance(path, t, s)) + (1 - fraction) * low
