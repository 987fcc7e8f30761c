"""Intervals for the parameters of a surface or a power law, by profile likelihood or bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from dit.config import suggest
from dit.scaling import intervals, terms
from dit.scaling.approaches import envelope, from_surface, parabolas
from dit.scaling.intervals import ConfidenceInterval
from dit.scaling.power_law import PowerLaw, fit_power_law
from dit.scaling.surface import Surface, cost_law, fit_surface
from dit.types import UserError

Array = np.ndarray
METHODS = ("profile", "bootstrap")
Quantities = dict[str, tuple[list, Callable[[float], float]]]


def surface_intervals(
    N, D, loss, *, method: str = "profile", level: float = 0.9, **options
) -> dict[str, ConfidenceInterval]:
    """Intervals of a surface's E, A, B, alpha and beta, around its least-squares fit.

    ``options``: those of ``intervals.bootstrap``, for that method.
    """
    design, y, theta, logs = _surface_problem(N, D, loss)
    quantities = {
        "E": ([1, 0, 0, 0, 0], np.exp),
        "A": ([0, 1, logs[0], 0, 0], np.exp),
        "B": ([0, 0, 0, 1, logs[1]], np.exp),
        "alpha": ([0, 0, 1, 0, 0], float),
        "beta": ([0, 0, 0, 0, 1], float),
    }
    return _intervals(design, y, theta, quantities, method, level, options)


def law_intervals(
    x, y, *, floor: bool = False, method: str = "profile", level: float = 0.9, **options
) -> dict[str, ConfidenceInterval]:
    """Intervals of a power law's coefficient and exponent, and of its floor if it has one."""
    law = fit_power_law(x, y, floor=floor)
    x, y = terms.positive(x=x, y=y)
    log = float(np.log(terms.centre(x)))
    design = terms.design(floor, np.log(x) - log)
    theta = [np.log(law.coefficient) + law.exponent * log, -law.exponent]
    quantities = {
        "coefficient": ([0] * floor + [1, log], np.exp),
        "exponent": ([0] * floor + [0, -1], float),
    }
    if floor:
        theta = [np.log(law.floor), *theta]
        quantities["floor"] = ([1, 0, 0], np.exp)
    return _intervals(design, np.log(y), np.array(theta), quantities, method, level, options)


def surface_samples(N, D, loss, **options) -> list[Surface]:
    """Surfaces fitted to resampled runs, for intervals of any quantity that follows from a surface.

    ``options``: those of ``intervals.bootstrap``.
    """
    design, y, theta, logs = _surface_problem(N, D, loss)
    return [_surface(t, logs) for t in intervals.bootstrap(design, y, theta, **options)]


def law_samples(x, y, *, floor: bool = False, seed: int = 0, samples: int = 400) -> list[PowerLaw]:
    """Power laws fitted to resampled pairs of points; their order does not matter."""
    x, y = terms.positive(x=x, y=y)
    draw, laws = np.random.default_rng(seed), []
    while len(laws) < samples:
        rows = draw.integers(0, len(x), len(x))
        if len(np.unique(x[rows])) >= 2 + floor:
            laws.append(fit_power_law(x[rows], y[rows], floor=floor))
    return laws


def allocation_intervals(
    N, D, C, loss, *, level: float = 0.9, samples: int = 200, seed: int = 0
) -> dict[str, dict[str, ConfidenceInterval] | None]:
    """For each approach, intervals for the exponents with which the optimal N and D grow in C.

    Each approach is applied to bootstrap losses: the fitted surface plus its own resampled residuals.
    This shows how far noise moves an approach, and nothing about its bias. An approach that fails in a
    tenth of the samples or more is None.
    """
    design, y, theta, logs = _surface_problem(N, D, loss)
    n, p = len(y), len(theta)
    terms.need(n, p + 1, "these intervals")
    fitted = terms.log_sum(design, theta[None])[0][0]
    residual = (y - fitted - np.mean(y - fitted)) * np.sqrt(n / (n - p))
    draw = np.random.default_rng(seed).integers(0, n, (samples, n))
    resampled = fitted + residual[draw]
    thetas = terms.solve(design, resampled, np.repeat(theta[None], samples, 0))[0]
    cost, places = cost_law(N, D, C), np.unique(C)
    approaches = {
        "1 envelope": lambda i: envelope(N, D, C, np.exp(resampled[i])),
        "2 parabolas": lambda i: parabolas(N, D, C, np.exp(resampled[i])),
        "3 surface": lambda i: from_surface(_surface(thetas[i], logs), places, *cost),
    }
    out: dict[str, dict[str, ConfidenceInterval] | None] = {}
    for name, approach in approaches.items():
        found = []
        for i in range(samples):
            try:
                allocation = approach(i)
            except UserError:
                continue
            found.append((allocation.N.exponent, allocation.D.exponent))
        enough = len(found) > 0.9 * samples
        columns = zip("ND", np.array(found).T, strict=True) if enough else ()
        out[name] = {k: intervals.quantiles(v, level) for k, v in columns} or None
    return out


def _surface(theta: Float[Array, "5"], logs: tuple[float, float]) -> Surface:
    e, a, alpha, b, beta = map(float, theta)
    A, B = np.exp(a + alpha * logs[0]), np.exp(b + beta * logs[1])
    return Surface(float(np.exp(e)), float(A), float(B), alpha, beta)


def _surface_problem(N, D, loss) -> tuple[Array, Array, Float[Array, "5"], tuple[float, float]]:
    fit = fit_surface(N, D, loss, method="least_squares")
    N, D, L = terms.positive(N=N, D=D, loss=loss)
    logs = float(np.log(terms.centre(N))), float(np.log(terms.centre(D)))
    design = terms.design(True, np.log(N) - logs[0], np.log(D) - logs[1])
    theta = fit.theta - np.array([0, fit.alpha * logs[0], 0, fit.beta * logs[1], 0])
    return design, np.log(L), theta, logs


def _intervals(
    design: Array,
    y: Array,
    theta: Array,
    quantities: Quantities,
    method: str,
    level: float,
    options: dict,
) -> dict[str, ConfidenceInterval]:
    if method not in METHODS:
        raise UserError(f"no method {method!r}: {suggest(method, list(METHODS))}")
    directions = {name: np.array(c, float) for name, (c, _) in quantities.items()}
    if method == "profile":
        found = {k: intervals.profile(design, y, theta, c, level) for k, c in directions.items()}
    else:
        thetas = intervals.bootstrap(design, y, theta, **options)
        found = {k: intervals.quantiles(thetas @ c, level) for k, c in directions.items()}
    return {
        name: ConfidenceInterval(float(back(found[name].low)), float(back(found[name].high)), level)
        for name, (_, back) in quantities.items()
    }
