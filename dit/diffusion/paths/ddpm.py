"""DDPM's variance-preserving path with linear betas (Ho et al. 2020), for any real time.

``alpha^2(n / T)`` is the product of ``1 - beta_s`` over the first ``n`` of ``T`` steps, so ``t = 0`` is
data and DDPM's integer timestep ``i`` is ``t = (i + 1) / T``. As beta is linear in s, the sum of
``log(1 - beta_s)`` is a polynomial in n (Faulhaber, on the series of the logarithm), which gives a
smooth path through the discrete table instead of an interpolation with a kink at every step.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from dit.diffusion.path import Path
from dit.types import UserError


def build(
    *,
    timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> Path:
    """``zero_terminal_snr`` shifts and scales alpha to 0 at the end (Lin et al. 2023, algorithm 1).

    The network is told the integer timestep, ``T t - 1``. Raises UserError for betas outside (0, 1).
    """
    if not (0 < beta_start <= beta_end < 1 and timesteps > 1):
        raise UserError(
            f"got timesteps={timesteps}, beta_start={beta_start}, beta_end={beta_end}; expected "
            "timesteps > 1 and 0 < beta_start <= beta_end < 1"
        )
    over_t = _log_alpha_bar_over_t(np.linspace(beta_start, beta_end, timesteps))
    log_alpha = [0.5 * c for c in over_t] + [0.0]  # natural logarithm of alpha, zero at t = 0
    # (log alpha(t) - log alpha(1)) / (t - 1): divided out, so that alpha - alpha(1) is 0 at t = 1.
    past_end = np.polydiv(np.asarray(log_alpha), [1.0, -1.0])[0].tolist()
    t_min, last = 1 / timesteps, math.exp(sum(log_alpha))
    first = math.exp(np.polyval(log_alpha, t_min))

    def scale(t):  # first / (first - last) from t_min on, and smoothly to 1 / (1 - last) at data
        end, blend = 1 / (1 - last), jnp.clip(t / t_min, 0, 1)
        return end + (first / (first - last) - end) * blend * blend * (3 - 2 * blend)

    def alpha(t):
        if zero_terminal_snr:
            return scale(t) * last * jnp.expm1((t - 1) * _polynomial(past_end, t))
        return jnp.exp(_polynomial(log_alpha, t))

    def sigma(t):
        if zero_terminal_snr:
            return jnp.sqrt(jnp.maximum(0, 1 - alpha(t)) * (1 + alpha(t)))
        return jnp.sqrt(-jnp.expm1(2 * _polynomial(log_alpha, t)))

    return Path(
        alpha=alpha,
        sigma=sigma,
        t_min=t_min,
        t_max=1.0,
        c_noise=lambda t: timesteps * t - 1,
        timesteps=timesteps,
    )


def _polynomial(coefficients: list[float], t):
    """Horner's rule, highest power first."""
    value = jnp.zeros_like(t)
    for c in coefficients:
        value = value * t + c
    return value


def _log_alpha_bar_over_t(betas: np.ndarray) -> list[float]:
    """Coefficients, highest power first, of the polynomial ``log alpha_bar(t) / t``."""
    n = len(betas)
    t = np.arange(1, n + 1) / n
    ratio = np.cumsum(np.log1p(-betas)) / t
    for degree in range(1, 13):
        fit = np.polynomial.Polynomial.fit(t, ratio, degree, domain=[0, 1], window=[0, 1])
        if np.abs(fit(t) * t - ratio * t).max() < 1e-9:
            break
    else:
        raise UserError(f"betas from {betas[0]} to {betas[-1]} over {n} steps are too steep to fit")
    return [float(c) for c in fit.coef[::-1]]
