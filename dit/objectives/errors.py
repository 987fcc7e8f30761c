"""The error of a network's output at every number of the data: what losses are means of.

``w(t) |out - (p x_0 + q eps)|^2`` and, where the network has a learned variance, one term of the
variational bound (Nichol & Dhariwal 2021, eq. 16).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from dit.diffusion.posterior import log_variance, posterior_mean
from dit.diffusion.process import Process, split_variance, target, to_x0
from dit.diffusion.weights import Weight
from dit.types import Times, UserError, Video, match_time


def errors(
    process: Process,
    weight: Weight,
    x_0: Video,
    eps: Video,
    x_t: Video,
    t: Times,
    density: Times,
    out: Float[Array, "b f h w c_out"],
) -> dict[str, Video]:
    """``loss`` (weighted), ``mse`` (unweighted) and, with a learned variance, ``vb``, elementwise.

    ``density``: of the times, which some weights divide by.
    """
    out, variance = split_variance(out, x_0.shape[-1])
    error = jnp.square(out - target(process, x_0, eps, t))
    w = weight(process, match_time(t, x_0), match_time(density, x_0))
    found = {"loss": w * error, "mse": error}
    if variance is not None:
        found["vb"] = variational_bound(process, x_0, x_t, out, variance, t)
    return found


def variational_bound(
    process: Process,
    x_0: Video,
    x_t: Video,
    out: Video,
    v: Video,
    times: Times,
) -> Video:
    """One term of the variational bound, in bits of every dimension, with the mean held fixed.

    The KL divergence between the true and the learned posterior of the step from t to the timestep
    before it; at the last one, the likelihood of 8-bit data (Ho et al. 2020, eqs. 5 and 13). Raises
    UserError on a path without discrete timesteps.
    """
    path = process.path
    if path.timesteps is None:
        raise UserError("a learned variance needs a path with discrete timesteps: use path 'ddpm'")
    t = match_time(times, x_0)
    s = t - 1 / path.timesteps
    s = jnp.where(s < 0.5 / path.timesteps, 0, s)
    x0_hat = jax.lax.stop_gradient(to_x0(process, x_t, out, times))
    truth = posterior_mean(path, x_0, x_t, t, s)
    mean = posterior_mean(path, x0_hat, x_t, t, s)
    true_log_var, log_var = log_variance(path, None, t, s), log_variance(path, v, t, s)
    ratio = jnp.exp(true_log_var - log_var)
    kl = log_var - true_log_var + ratio - 1 + jnp.square(truth - mean) * jnp.exp(-log_var)
    nats = jnp.where(s == 0, -_log_likelihood_8bit(x_0, mean, 0.5 * log_var), 0.5 * kl)
    return nats / math.log(2)


def _log_likelihood_8bit(x: Array, mean: Array, log_std: Array) -> Array:
    """Log probability of the 1/127.5-wide bin around ``x``; the outer bins reach to infinity."""
    upper = jnp.where(x > 0.999, jnp.inf, (x - mean + 1 / 255) * jnp.exp(-log_std))
    lower = jnp.where(x < -0.999, -jnp.inf, (x - mean - 1 / 255) * jnp.exp(-log_std))
    flip = (lower > 0) & jnp.isfinite(lower)  # in the upper tail the complement keeps the digits
    upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    return jnp.log(jnp.maximum(ndtr(upper) - ndtr(lower), 1e-12))
