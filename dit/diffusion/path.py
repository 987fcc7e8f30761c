"""A path from data to noise: ``x_t = alpha(t) x_0 + sigma(t) eps``, and what follows from it.

Every path runs from data at ``t = 0`` (alpha 1, sigma 0) towards noise at ``t_max``. The network is
trained and evaluated on ``[t_min, t_max]`` only; a sampler's last step goes on to ``t = 0``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.types import UserError

Schedule = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def identity(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The default ``c_noise``: the network is told ``t`` itself."""
    return t


@dataclasses.dataclass(frozen=True)
class Path:
    """``alpha`` and ``sigma`` as functions of t; derivatives come from ``jax.jvp``, never by hand.

    ``c_noise``: what the network's time embedding is given in place of ``t``.
    ``sigma_data``: when set, network inputs are scaled to unit variance for data of this standard
    deviation, ``c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2)`` (Karras et al. 2022, table 1).
    ``timesteps``: the number of discrete steps, for paths that have them (DDPM), else None.
    Raises UserError unless ``0 <= t_min < t_max``.
    """

    alpha: Schedule
    sigma: Schedule
    t_min: float
    t_max: float
    c_noise: Schedule = identity
    sigma_data: float | None = None
    timesteps: int | None = None

    def __post_init__(self):
        first, last = np.float32(self.t_min), np.float32(self.t_max)  # as the network sees them
        if not 0 <= first < last < np.inf:
            raise UserError(
                f"got a path from t_min={self.t_min} to t_max={self.t_max}; expected finite numbers "
                "with 0 <= t_min < t_max"
            )


def derivatives(path: Path, t: Float[Array, "*s"]) -> tuple[Array, Array, Array, Array]:
    """``(alpha, d alpha/dt, sigma, d sigma/dt)`` at ``t``, each of ``t``'s shape."""
    alpha, alpha_dot = jax.jvp(path.alpha, (t,), (jnp.ones_like(t),))
    sigma, sigma_dot = jax.jvp(path.sigma, (t,), (jnp.ones_like(t),))
    return alpha, alpha_dot, sigma, sigma_dot


def snr(path: Path, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Signal-to-noise ratio ``alpha^2 / sigma^2``: infinite at ``t = 0``."""
    return jnp.square(path.alpha(t) / path.sigma(t))


def logsnr(path: Path, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``2 log(alpha / sigma)``: +inf at data, -inf where alpha is zero."""
    return 2 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


def logsnr_rate(path: Path, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``d logsnr / dt = 2 (alpha' sigma - alpha sigma') / (alpha sigma)``, which is negative."""
    alpha, alpha_dot, sigma, sigma_dot = derivatives(path, t)
    return 2 * (alpha_dot * sigma - alpha * sigma_dot) / (alpha * sigma)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def time_of_logsnr(path: Path, value: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The time in ``[t_min, t_max]`` of a given log-SNR, by bisection (values outside are clipped).

    Its derivative is one over that of the log-SNR, and zero where a value is clipped.
    """
    low = jnp.full_like(value, path.t_min)
    high = jnp.full_like(value, path.t_max)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        too_clean = logsnr(path, middle) > value  # log-SNR falls as t grows
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    return 0.5 * (low + high)


@time_of_logsnr.defjvp
def _time_of_logsnr_jvp(path, values, tangents):
    (value,), (tangent,) = values, tangents
    t = time_of_logsnr(path, value)
    ends = [logsnr(path, jnp.asarray(end, t.dtype)) for end in (path.t_min, path.t_max)]
    inside = (value < ends[0]) & (value > ends[1])
    return t, jnp.where(inside, tangent / logsnr_rate(path, t), 0)
