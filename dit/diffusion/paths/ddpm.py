"""DDPM's variance-preserving path (Ho et al. 2020), for any real time.

``alpha^2(n / T)`` is the product of ``1 - beta_s`` over the first ``n`` of ``T`` steps, so ``t = 0`` is
data and DDPM's integer timestep ``i`` is ``t = (i + 1) / T``. As beta is a polynomial in s, so is the
sum of ``log(1 - beta_s)`` in n (Faulhaber, on the series of the logarithm), which gives a smooth path
through the discrete table instead of an interpolation with a kink at every step. Between data and the
first timestep, where there is no table, log alpha falls from 0 with the slope it has there.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dit.diffusion.path import Path, Schedule
from dit.types import Range, UserError

Beta = Annotated[float, Range(0, 1, open="both")]


def build(
    *,
    timesteps: Annotated[int, Range(2, 10**5)] = 1000,
    beta_start: Beta = 1e-4,
    beta_end: Beta = 0.02,
    betas: Literal["linear", "scaled_linear"] = "linear",
    zero_terminal_snr: bool = False,
) -> Path:
    """``betas``: they rise linearly, or (``scaled_linear``) their square roots do, as in latent
    diffusion (Rombach et al. 2022), from .00085 to .012 in Stable Diffusion. ``zero_terminal_snr``
    shifts and scales alpha to 0 at the end (Lin et al. 2023, algorithm 1).

    The network is told the integer timestep, ``T t - 1``. Raises UserError for betas that fall.
    """
    if beta_start > beta_end:
        raise UserError(
            f"got beta_start={beta_start} and beta_end={beta_end}; expected betas that do not fall"
        )
    power = {"linear": 1, "scaled_linear": 2}[betas]
    ends = beta_start ** (1 / power), beta_end ** (1 / power)
    t_min, over_t = 1 / timesteps, _log_alpha_over_t(np.linspace(*ends, timesteps) ** power)
    whole = over_t * np.poly1d([1.0, t_min])  # log alpha, by t - t_min
    log_first, log_last = (float(whole(x)) for x in (0, 1 - t_min))
    bend = float(whole.deriv()(0)) / log_first - timesteps  # keeps the slope at t_min

    def log_alpha(t):
        before = timesteps * log_first * t * _growth(bend, t, t_min)
        return jnp.where(t < t_min, before, t * _polynomial(over_t, t - t_min))

    def alpha(t):
        return jnp.exp(log_alpha(t))

    def sigma(t):
        return jnp.sqrt(_one_minus_exp(2 * log_alpha(t)))

    if zero_terminal_snr:
        slope = float(whole.deriv()(0))
        # (log alpha(t) - log alpha(1)) / (1 - t), divided out: it is exactly 0 at t = 1.
        to_end = -np.polydiv(whole - log_last, [1.0, t_min - 1])[0]
        alpha, sigma = _rescaled(log_alpha, to_end, t_min, log_first, log_last, slope)

    return Path(
        alpha=alpha,
        sigma=sigma,
        t_min=t_min,
        t_max=1.0,
        c_noise=lambda t: timesteps * t - 1,
        timesteps=timesteps,
    )


def _rescaled(
    log_alpha: Schedule,
    to_end: np.poly1d,
    t_min: float,
    log_first: float,
    log_last: float,
    slope: float,
) -> tuple[Schedule, Schedule]:
    """``(alpha, sigma)`` for an alpha that falls to zero at ``t = 1``.

    With ``a`` the alpha of the betas, ``first = a(t_min)`` and ``last = a(1)``, it is
    ``first (a - last) / (first - last)`` from the first timestep on: there it is ``a`` itself, as in
    the paper. Before, ``1 - alpha = (1 - a) / (1 + c (t_min - t))`` goes on to 0 at data, with the
    ``c`` that keeps the slope. No two nearly equal numbers are subtracted, nor in derivatives: near
    data sigma is not made of ``1 - alpha^2``, near the end alpha is not ``a - last``.
    """
    first, last, missing = math.exp(log_first), math.exp(log_last), -math.expm1(log_first)
    scale = first / (first - last)
    c = -first * slope * (scale - 1) / missing

    def one_minus_alpha(t):
        value = log_alpha(t)
        before = _one_minus_exp(value) * _growth(c, t, t_min)
        after = missing + scale * first * _one_minus_exp(value - log_first)
        return jnp.where(t < t_min, before, after)

    def alpha(t):
        a = jnp.exp(log_alpha(t))
        near_end = last * jnp.expm1((1 - t) * _polynomial(to_end, t - t_min))
        after = scale * jnp.where(a > 2 * last, a - last, near_end)
        return jnp.where(t < t_min, 1 - one_minus_alpha(t), after)

    def sigma(t):
        a = alpha(t)
        near_data = one_minus_alpha(t) * (1 + a)
        return jnp.sqrt(jnp.where(a > 0.5, near_data, 1 - jnp.square(a)))

    return alpha, sigma


def _growth(slope: float, t: Array, t_min: float) -> Array:
    """A positive factor for times before ``t_min`` that ends there at 1, with this slope."""
    return 1 / (1 + slope * (t_min - jnp.minimum(t, t_min)))


def _one_minus_exp(x: Array) -> Array:
    """``1 - exp(x)`` for x below or about 0, with all the digits of it and of its derivative."""
    return jnp.where(x > -0.5, -jnp.expm1(x), 1 - jnp.exp(x))


def _polynomial(polynomial: np.poly1d, x: Array) -> Array:
    """Horner's rule."""
    value = jnp.zeros_like(x)
    for c in polynomial.coeffs:
        value = value * x + float(c)
    return value


def _log_alpha_over_t(betas: np.ndarray) -> np.poly1d:
    """The polynomial ``log alpha(t) / t``, by ``t - t_min``: its terms have one sign.

    Raises UserError for betas that are too steep for it.
    """
    n = len(betas)
    t = np.arange(1, n + 1) / n
    ratio = 0.5 * np.cumsum(np.log1p(-betas)) / t
    for degree in range(1, 13):
        fit = np.polynomial.Polynomial.fit(t - 1 / n, ratio, degree, domain=[0, 1], window=[0, 1])
        if np.abs(fit(t - 1 / n) * t - ratio * t).max() < 1e-9:
            return np.poly1d(fit.coef[::-1])
    raise UserError(f"betas from {betas[0]} to {betas[-1]} over {n} steps are too steep to fit")
