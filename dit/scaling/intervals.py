"""Intervals for the parameters of sums of power laws: profile likelihood, and the bootstrap.

*Profile*: with log residuals Gaussian of unknown scale, a value ``psi`` of one parameter is kept when
refitting all others at ``psi`` raises the sum of squares by less than ``s^2 t^2``, with ``s^2`` the
residual variance and ``t`` Student's quantile of n - p degrees of freedom (Bates & Watts 1988, ch. 6).
*Bootstrap*: refits to the fit plus its own resampled residuals, widened by ``sqrt(n / (n - p))``, or to
resampled runs; an interval is between two quantiles (Efron & Tibshirani 1993).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import linalg, stats

from dit.scaling import terms
from dit.types import UserError

Array = np.ndarray
FAR = 40.0  # in logs: a parameter beyond it counts as zero or infinite
KINDS = ("residuals", "runs")


@dataclasses.dataclass(frozen=True)
class ConfidenceInterval:
    """``low`` to ``high``, at a confidence ``level``."""

    low: float
    high: float
    level: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"got level={level}; expected a confidence between 0 and 1, such as 0.9")


def profile(
    design: Float[Array, "n k p"],
    y: Float[Array, " n"],
    theta: Float[Array, " p"],
    direction: Float[Array, " p"],
    level: float = 0.9,
) -> ConfidenceInterval:
    """The interval of ``direction . theta``, with ``theta`` a least-squares fit.

    An end is infinite where the data do not bound the parameter on that side.
    """
    _check_level(level)
    n, _, p = design.shape
    if n <= p:
        raise UserError(f"got {n} runs for {p} parameters; an interval needs at least {p + 1}")
    theta = np.clip(theta, -0.75 * FAR, 0.75 * FAR)  # a term of no size at all has no derivative
    solved, least = terms.solve(design, y[None], theta[None])
    theta, least = solved[0], 2 * float(least[0])
    variance = least / (n - p)
    bound = float(stats.t.ppf(0.5 + level / 2, n - p))
    centre = float(direction @ theta)
    if variance < 1e-24:
        return ConfidenceInterval(centre, centre, level)
    jacobian = terms.log_sum(design, theta[None])[1][0]
    squared_error = variance * direction @ np.linalg.pinv(jacobian.T @ jacobian) @ direction
    first = bound * np.sqrt(max(float(squared_error), 0.0))
    first = first if 1e-9 < first < FAR / 4 else 1.0  # nearly or not at all determined
    along = direction / (direction @ direction)
    free = linalg.null_space(direction[None])
    reduced, pushed = design @ free, design @ along
    home = free.T @ (theta - centre * along)
    others = [home]

    def excess(psi: float) -> float:
        starts = np.stack([others[0], home])  # where the last one ended, and afresh
        u, cost = terms.solve(reduced, y[None], starts, offset=psi * pushed)
        others[0] = u[cost.argmin()]
        return float(np.sqrt(max(2 * cost.min() - least, 0) / variance) - bound)

    ends = []
    for side in (-1, 1):
        others[0] = home
        inner, below = centre, -bound
        outer = centre + side * first
        above = excess(outer)
        while above < 0 and abs(outer - centre) < FAR:
            inner, below = outer, above
            outer = centre + 1.6 * (outer - centre)
            above = excess(outer)
        ends.append(_crossing(excess, inner, below, outer, above) if above >= 0 else side * np.inf)
    return ConfidenceInterval(float(ends[0]), float(ends[1]), level)


def _crossing(f, low: float, below: float, high: float, above: float, steps: int = 30) -> float:
    """The root of ``f`` between ``low``, where it is negative, and ``high``, by the Illinois method.

    The values at both ends are given, and ``f`` is not called there. It need not be smooth.
    """
    width, last = abs(high - low), 0
    for _ in range(steps):
        middle = high - above * (high - low) / (above - below)
        value = f(middle)
        if abs(value) < 1e-5 or abs(high - low) < 1e-6 * width:
            return middle
        if value > 0:
            high, above, below = middle, value, below / 2 if last == 1 else below
        else:
            low, below, above = middle, value, above / 2 if last == -1 else above
        last = 1 if value > 0 else -1
    return middle


def bootstrap(
    design: Float[Array, "n k p"],
    y: Float[Array, " n"],
    theta: Float[Array, " p"],
    *,
    samples: int = 400,
    seed: int = 0,
    kind: str = "residuals",
    delta: float | None = None,
) -> Float[Array, "s p"]:
    """``theta`` fitted to so many resampled data sets; ``delta`` as in ``terms.solve``.

    ``kind``: resample ``residuals`` (each run keeps its place) or whole ``runs``.
    """
    if kind not in KINDS:
        raise UserError(f"got kind={kind!r}; expected one of {', '.join(KINDS)}")
    n, _, p = design.shape
    if n <= p:
        raise UserError(f"got {n} runs for {p} parameters; a bootstrap needs at least {p + 1}")
    draw = np.random.default_rng(seed).integers(0, n, (samples, n))
    starts = np.repeat(theta[None], samples, 0)
    if kind == "runs":
        weights = np.stack([np.bincount(row, minlength=n) for row in draw]).astype(float)
        return terms.solve(design, y[None], starts, weights=weights, delta=delta)[0]
    fitted = terms.log_sum(design, theta[None])[0][0]
    residual = y - fitted
    residual = (residual - residual.mean()) * np.sqrt(n / (n - p))
    return terms.solve(design, fitted + residual[draw], starts, delta=delta)[0]


def quantiles(values: Float[Array, " s"], level: float = 0.9) -> ConfidenceInterval:
    """The central interval that holds the share ``level`` of the resampled values."""
    _check_level(level)
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return ConfidenceInterval(float(low), float(high), level)
