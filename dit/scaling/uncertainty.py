"""How sure a fit is: intervals for a surface's or a power law's parameters, by profile or bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from dit.config import suggest
from dit.scaling import intervals, terms
from dit.scaling.intervals import Interval
from dit.scaling.power_law import PowerLaw, fit_power_law
from dit.scaling.surface import Surface, fit_surface
from dit.types import UserError

Array = np.ndarray
METHODS = ("profile", "bootstrap")
Quantities = dict[str, tuple[list, Callable[[float], float]]]


def surface_intervals(
    N, D, loss, *, method: str = "profile", level: float = 0.9, **options
) -> dict[str, Interval]:
    """Intervals of a surface's E, A, B, alpha and beta, around its least-squares fit.

    ``options``: of ``intervals.bootstrap``, if that is the method.
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
) -> dict[str, Interval]:
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
    """Surfaces fitted to resampled runs, for intervals of whatever follows from one.

    ``options``: of ``intervals.bootstrap``.
    """
    design, y, theta, logs = _surface_problem(N, D, loss)
    made = []
    for e, a, alpha, b, beta in intervals.bootstrap(design, y, theta, **options):
        A, B = np.exp(a + alpha * logs[0]), np.exp(b + beta * logs[1])
        made.append(Surface(float(np.exp(e)), float(A), float(B), float(alpha), float(beta)))
    return made


def law_samples(x, y, *, floor: bool = False, seed: int = 0, samples: int = 400) -> list[PowerLaw]:
    """Power laws fitted to resampled points: pairs, so that their order does not matter."""
    x, y = terms.positive(x=x, y=y)
    draw, laws = np.random.default_rng(seed), []
    while len(laws) < samples:
        rows = draw.integers(0, len(x), len(x))
        if len(np.unique(x[rows])) >= 2 + floor:
            laws.append(fit_power_law(x[rows], y[rows], floor=floor))
    return laws


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
) -> dict[str, Interval]:
    if method not in METHODS:
        raise UserError(f"no method {method!r}: {suggest(method, list(METHODS))}")
    directions = {name: np.array(c, float) for name, (c, _) in quantities.items()}
    if method == "profile":
        found = {k: intervals.profile(design, y, theta, c, level) for k, c in directions.items()}
    else:
        thetas = intervals.bootstrap(design, y, theta, **options)
        found = {k: intervals.quantiles(thetas @ c, level) for k, c in directions.items()}
    return {
        name: Interval(float(back(found[name].low)), float(back(found[name].high)), level)
        for name, (_, back) in quantities.items()
    }
