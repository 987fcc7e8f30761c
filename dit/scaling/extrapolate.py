"""How well a fit predicts the largest budget from the others, compared with simple forecasts."""

from __future__ import annotations

import dataclasses

import numpy as np

from dit.scaling import terms
from dit.scaling.approaches import budgets
from dit.scaling.power_law import fit_power_law
from dit.scaling.surface import Surface, fit_surface
from dit.types import UserError


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """Signed relative errors, ``forecast / truth - 1``, at the largest budget, which is held out.

    ``runs``: the surface's errors for each of its runs. ``best``: the errors of the surface and of each
    baseline for its lowest loss. ``factor``: its cost over the largest cost in the fit.
    """

    surface: Surface
    factor: float
    runs: tuple[float, ...]
    best: dict[str, float]


def extrapolation(N, D, C, loss, method: str = "huber") -> Extrapolation:
    """Hold out the largest budget, fit the rest and compare.

    Baselines for the lowest loss: ``same`` (the lowest so far), ``line`` (in log C, through each
    budget's lowest loss), ``power law``, and, with three budgets to fit, ``power law with floor``.
    Raises UserError for fewer than three budgets.
    """
    N, D, C, L = terms.positive(N=N, D=D, C=C, loss=loss)
    groups = budgets(C)
    if len(groups) < 3:
        raise UserError(
            f"got {len(groups)} budgets; holding one out needs three or more (costs within 10% of each "
            "other are one budget)"
        )
    held, kept = groups[-1], np.concatenate(groups[:-1])
    surface = fit_surface(N[kept], D[kept], L[kept], method=method)
    forecast = surface(N[held], D[held])
    best = held[L[held].argmin()]
    costs = np.array([C[rows[L[rows].argmin()]] for rows in groups[:-1]])
    least = np.array([L[rows].min() for rows in groups[:-1]])
    at, truth = C[best], L[best]
    forecasts = {
        "surface": forecast.min(),
        "same": least.min(),
        "line": np.polyval(np.polyfit(np.log(costs), least, 1), np.log(at)),
        "power law": fit_power_law(costs, least)(at),
    }
    if len(costs) >= 3:
        forecasts["power law with floor"] = fit_power_law(costs, least, floor=True)(at)
    errors = {name: float(value / truth - 1) for name, value in forecasts.items()}
    runs = tuple(float(e) for e in forecast / L[held] - 1)
    return Extrapolation(surface, float(at / C[kept].max()), runs, errors)
