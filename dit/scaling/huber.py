"""The two robust objectives of the scaling-law literature, for the sums of power laws in ``terms``.

``minimise``: ``sum_i Huber_delta(r_i)`` of log residuals, the sum and not the mean (Hoffmann et al.
2022). With the mean, an optimizer's default tolerance stops too soon (Besiroglu et al. 2024).
``likelihood``: the density ``p(r) = exp(-Huber_delta(r / sigma)) / (Z_delta sigma)`` with its scale free
(Besiroglu et al. 2024). At small ``delta`` it is all but Laplace's, so its best ``theta`` has the
smallest sum of absolute residuals. That function has corners and is approached by ever sharper Hubers.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from dit.scaling import terms

Array = np.ndarray
OPTIONS = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20}


def _objective(theta: Array, design: Array, y: Array, delta: float) -> tuple[float, Array]:
    value, jacobian = terms.log_sum(design, theta[None])
    r = value[0] - y
    slope = np.clip(r, -delta, delta)
    return float(terms.cost(r, delta).sum()), slope @ jacobian[0]


def minimise(
    design: Float[Array, "n k p"],
    y: Float[Array, " n"],
    starts: Float[Array, "s p"],
    delta: float,
    polish: int = 3,
) -> tuple[Float[Array, " p"], float]:
    """The minimum of the sum of Huber's function and where it is, by L-BFGS from every start."""
    unit = delta * np.abs(np.mean(y)) + delta  # so that the tolerances are relative ones

    def scaled(theta):
        value, gradient = _objective(theta, design, y, delta)
        return value / unit, gradient / unit

    def descend(theta):
        found = optimize.minimize(scaled, theta, jac=True, method="L-BFGS-B", options=OPTIONS)
        return found.x, float(found.fun)

    ends = sorted((descend(theta) for theta in starts), key=lambda end: end[1])
    theta, value = ends[0]
    for _ in range(polish):  # reweighted least squares, where L-BFGS ended on a narrow floor
        solved, cost = terms.solve(design, y[None], theta[None], delta=delta)
        again, lower = descend(solved[0] if cost[0] / unit < value else theta)
        if not lower < value:
            break
        theta, value = again, lower
    return theta, float(value * unit)


def normaliser(delta: float) -> float:
    """``Z``: the integral of ``exp(-Huber_delta(r))``."""
    inside = np.sqrt(2 * np.pi) * (1 - 2 * stats.norm.sf(delta))
    return float(inside + 2 * np.exp(-0.5 * delta**2) / delta)


def negative_log_likelihood(r: Float[Array, " n"], sigma: float, delta: float) -> float:
    """``sum_i -log p(r_i)`` of the Huber density of scale ``sigma``."""
    total = terms.cost(r / sigma, delta).sum()
    return float(total + len(r) * np.log(normaliser(delta) * sigma))


def likelihood(
    design: Float[Array, "n k p"],
    y: Float[Array, " n"],
    starts: Float[Array, "s p"],
    delta: float,
) -> tuple[Float[Array, " p"], float, float]:
    """``(theta, sigma, negative log likelihood)`` at the largest likelihood.

    For a given scale this is Huber's objective with threshold ``sigma delta``. Scale and ``theta`` are
    found in turn, starting from wide thresholds.
    """
    threshold = 0.1
    theta, _ = minimise(design, y, starts, threshold, polish=1)
    sigma, best = 1.0, np.inf
    for _ in range(60):
        r = terms.log_sum(design, theta[None])[0][0] - y
        found = optimize.minimize_scalar(
            lambda s, r=r: negative_log_likelihood(r, np.exp(s), delta),
            bounds=(np.log(1e-12), np.log(1e3)),
            method="bounded",
            options={"xatol": 1e-10},
        )
        sigma = float(np.exp(found.x))
        arrived = threshold <= sigma * delta
        if arrived and best - found.fun < 1e-9 * len(y):
            break
        best = found.fun
        threshold = max(sigma * delta, threshold / 3)
        theta, _ = minimise(design, y, theta[None], threshold, polish=5)
    return theta, sigma, float(found.fun)
