"""All fits to a table of runs at once: ``fit(runs) -> Fit``.

A run has a size N, an amount of data D, an exact cost C in FLOPs and a loss. Each seed is a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dit.scaling import terms
from dit.scaling.approaches import Allocation, Minimum, budgets, compare, parabola, parabola_bias
from dit.scaling.extrapolate import Extrapolation, extrapolation
from dit.scaling.intervals import ConfidenceInterval, quantiles
from dit.scaling.power_law import PowerLaw, fit_power_law
from dit.scaling.surface import Surface, cost_law, fit_surface
from dit.scaling.uncertainty import surface_intervals, surface_samples
from dit.types import UserError

Array = np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """Columns of equal length: ``N``, ``D``, ``C``, ``loss``, and the tuned settings, if recorded."""

    N: Float[Array, " n"]
    D: Float[Array, " n"]
    C: Float[Array, " n"]
    loss: Float[Array, " n"]
    lr: Float[Array, " n"] | None = None
    batch: Float[Array, " n"] | None = None

    def __post_init__(self):
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {name: column for name, column in given.items() if column is not None}
        for name, column in zip(given, terms.positive(**given), strict=True):
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, rows: Sequence[int] | Array) -> Runs:
        """Some of the rows."""
        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Runs(**{k: None if c is None else c[rows] for k, c in columns.items()})

    def tuned(self) -> Runs:
        """The rows of the best learning rate and batch of each budget and size, with all their seeds."""
        keep = []
        for rows in budgets(self.C):
            for size in np.unique(self.N[rows]):
                same = rows[self.N[rows] == size]
                keep.extend(same[_best_setting(self.take(same))])
        return self.take(np.sort(np.array(keep)))


def _best_setting(runs: Runs) -> Array:
    """A mask of the setting with the lowest mean loss over seeds."""
    columns = [c for c in (runs.lr, runs.batch) if c is not None]
    if not columns:
        return np.ones(len(runs), bool)
    settings, which = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
    means = [runs.loss[which.reshape(-1) == i].mean() for i in range(len(settings))]
    return which.reshape(-1) == int(np.argmin(means))


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The best value of a setting at each budget, and its power law in C.

    ``law`` is None unless two budgets or more have a minimum between the values tried.
    """

    minima: tuple[tuple[float, Minimum], ...]  # (C, minimum)
    law: PowerLaw | None


def tuning(C, x, loss) -> Tuning:
    """The optimal ``x`` (learning rate, batch size) as a power law of the cost.

    Fits a parabola in ``log x`` at each budget to the lowest loss over sizes for each value tried.
    """
    C, x, L = terms.positive(C=C, x=x, loss=loss)
    minima = []
    for rows in budgets(C):
        values = np.unique(x[rows])
        if len(values) >= 3:
            least = [L[rows][x[rows] == v].min() for v in values]
            minima.append((terms.centre(C[rows]), parabola(values, least)))
    good = [(cost, m.x) for cost, m in minima if m.interior]
    law = fit_power_law(*np.array(good).T) if len(good) >= 2 else None
    return Tuning(tuple(minima), law)


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of ``fit``. A field that the runs cannot support is None, and ``notes`` say why."""

    surface: Surface
    projection: Surface
    cost: tuple[float, float]
    approaches: dict[str, Allocation | None]
    frontier: dict[str, PowerLaw]
    intervals: dict[str, ConfidenceInterval]
    exponents: dict[str, ConfidenceInterval]
    bias: float | None
    extrapolation: Extrapolation | None
    tuning: dict[str, Tuning]
    notes: tuple[str, ...]


def fit(
    runs: Runs, *, method: str = "huber", level: float = 0.9, samples: int = 400, seed: int = 0
) -> Fit:
    """The surface, the optimal allocation in three ways, intervals, tuning laws and extrapolation.

    ``method``: that of ``fit_surface``. In the result, ``bias`` is that of approach 2's optimal N at ten
    times the largest budget, and ``frontier`` each budget's lowest loss as a power law in C. Raises
    UserError for fewer than five tuned runs.
    """
    tuned, notes = runs.tuned(), []
    columns = tuned.N, tuned.D, tuned.C, tuned.loss

    def attempt(make, *args, **kwargs):
        try:
            return make(*args, **kwargs)
        except UserError as error:
            notes.append(str(error))
            return None

    surface = fit_surface(tuned.N, tuned.D, tuned.loss, method=method)
    k, g = cost_law(tuned.N, tuned.D, tuned.C)
    approaches = compare(*columns, method=method)
    for allocation in filter(None, approaches.values()):
        notes.extend(allocation.warnings)
    least = [rows[tuned.loss[rows].argmin()] for rows in budgets(tuned.C)]
    frontier = {
        name: attempt(fit_power_law, tuned.C[least], tuned.loss[least], floor=floor)
        for name, floor in (("power law", False), ("power law with floor", True))
    }
    profile, exponents = None, {}
    if len(tuned) > 5:
        profile = attempt(surface_intervals, *columns[:2], tuned.loss, level=level)
        surfaces = surface_samples(*columns[:2], tuned.loss, samples=samples, seed=seed)
        pairs = np.array([s.exponents(g) for s in surfaces])
        exponents = {n: quantiles(pairs[:, i], level) for i, n in enumerate(("N", "D"))}
    return Fit(
        surface=surface,
        projection=fit_surface(tuned.N, tuned.D, tuned.loss, method="projection"),
        cost=(k, g),
        approaches=approaches,
        frontier={name: law for name, law in frontier.items() if law is not None},
        intervals=profile or {},
        exponents=exponents,
        bias=attempt(parabola_bias, surface, *columns[:3], at=10 * float(tuned.C.max())),
        extrapolation=attempt(extrapolation, *columns, method=method),
        tuning={
            name: tuning(runs.C, column, runs.loss)
            for name, column in (("lr", runs.lr), ("batch", runs.batch))
            if column is not None
        },
        notes=tuple(dict.fromkeys(notes)),
    )
