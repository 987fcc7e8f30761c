"""The optimal N and D at every budget in three ways (Hoffmann et al. 2022, sec. 3), side by side.

1. *Envelope*: at every cost, the size of the model with the least loss so far.
2. *Parabolas*: at every budget, the minimum of a parabola in log N through the losses of its runs.
3. *Surface*: ``L(N, D)`` fitted to all runs, its optimum in closed form.

Each gives a law ``optimum = coefficient C^exponent``. Approach 2 is biased: a slice of the surface is
not a parabola, so its minimum depends on which sizes were run (``WARNING``). ``parabola_bias`` measures
the bias by applying it to the fitted surface, where the truth is known.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from dit.scaling import terms
from dit.scaling.power_law import PowerLaw, fit_power_law
from dit.scaling.surface import Surface, cost_law, fit_surface
from dit.types import UserError

Array = np.ndarray
WARNING = (
    "approach 2 is biased: at one budget the loss is not a parabola in log N, so the minimum depends on "
    "which sizes were run, and the error grows with extrapolation; prefer the surface (approach 3)"
)


@dataclasses.dataclass(frozen=True)
class Minimum:
    """The minimum of a parabola in ``log x``, its ``loss``, and whether runs lie on both sides of it."""

    x: float
    loss: float
    interior: bool


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The optimal ``N`` and ``D`` as laws in C, with the points they were fitted to, if any."""

    N: PowerLaw
    D: PowerLaw
    points: Float[Array, "m 3"]  # C, N, D
    warnings: tuple[str, ...] = ()


def parabola(x, y) -> Minimum:
    """The minimum of the parabola in ``log x`` fitted to the points; at an end if it is not convex.

    Several losses at one ``x`` (seeds) all count. Raises UserError for fewer than three values of x.
    """
    (x,) = terms.positive(x=x)
    y = np.asarray(y, np.float64)
    terms.need(len(np.unique(x)), 3, "a parabola")
    middle = np.log(terms.centre(x))
    u = np.log(x) - middle
    a, b, c = np.polyfit(u, y, 2)
    at = -b / (2 * a) if a > 0 else u[y.argmin()]
    interior = bool(a > 0 and u.min() < at < u.max())
    at = float(np.clip(at, u.min(), u.max()))
    return Minimum(float(np.exp(at + middle)), float(a * at * at + b * at + c), interior)


def budgets(C, tolerance: float = 0.1) -> list[Int[Array, " m"]]:
    """The rows of each budget, cheapest first: its costs differ by at most ``tolerance`` in log."""
    (C,) = terms.positive(C=C)
    order = np.argsort(C, kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(C[order])) > tolerance) + 1
    return np.split(order, cuts)


def envelope(N, D, C, loss, bins: int = 20) -> Allocation:
    """Approach 1. The rows may be points along training curves, as in the paper, or whole runs.

    Costs are divided into ``bins`` of equal width in log. A bin's lowest loss counts unless a cheaper
    run has a lower one.
    """
    N, D, C, L = terms.positive(N=N, D=D, C=C, loss=loss)
    edges = np.geomspace(C.min(), C.max(), bins + 1)
    cell = np.clip(np.searchsorted(edges, C, side="right") - 1, 0, bins - 1)
    points, lowest = [], np.inf
    for i in range(bins):
        rows = np.flatnonzero(cell == i)
        if not len(rows):
            continue
        best = rows[L[rows].argmin()]
        if L[best] < lowest:
            lowest = L[best]
            points.append((C[best], N[best], D[best]))
    return _allocation(np.array(points), ())


def parabolas(N, D, C, loss, tolerance: float = 0.1) -> Allocation:
    """Approach 2. Leaves out budgets whose minimum is not between their runs, with a warning."""
    N, D, C, L = terms.positive(N=N, D=D, C=C, loss=loss)
    points, warnings = [], [WARNING]
    for rows in budgets(C, tolerance):
        cost = terms.centre(C[rows])
        if len(np.unique(N[rows])) < 3:
            warnings.append(f"C = {cost:.3g}: fewer than three sizes; left out")
            continue
        n, d = parabola(N[rows], L[rows]), parabola(D[rows], L[rows])
        if n.interior and d.interior:
            points.append((cost, n.x, d.x))
        else:
            warnings.append(f"C = {cost:.3g}: no minimum between the sizes run; left out")
    if len(points) < 2:
        raise UserError(
            f"got {len(points)} budgets with a minimum between their sizes; expected two or more: run "
            "smaller or larger models at each budget"
        )
    return _allocation(np.array(points), tuple(warnings))


def from_surface(surface: Surface, C, k: float = 6.0, g: float = 1.0) -> Allocation:
    """Approach 3: the closed form for costs ``k N^g D``; ``C``: the budgets to show."""
    C = np.unique(np.asarray(C, np.float64))
    (n, d), (a, b) = surface.optimum(1.0, k=k, g=g), surface.exponents(g)
    N, D = surface.optimum(C, k=k, g=g)
    return Allocation(PowerLaw(float(n), a), PowerLaw(float(d), b), np.stack([C, N, D], 1))


def compare(N, D, C, loss, method: str = "huber", bins: int = 20) -> dict[str, Allocation | None]:
    """All three approaches, by name; None for one that these runs cannot support."""
    C = np.asarray(C, np.float64)
    middles = [terms.centre(C[rows]) for rows in budgets(C)]
    surface = fit_surface(N, D, loss, method=method)
    out = {}
    for name, make in (
        ("1 envelope", lambda: envelope(N, D, C, loss, bins)),
        ("2 parabolas", lambda: parabolas(N, D, C, loss)),
        ("3 surface", lambda: from_surface(surface, middles, *cost_law(N, D, C))),
    ):
        try:
            out[name] = make()
        except UserError:
            out[name] = None
    return out


def parabola_bias(surface: Surface, N, D, C, at: float) -> float:
    """The relative error of approach 2's optimal N at cost ``at``, if ``surface`` were exact.

    Approach 2 is applied to the surface's own losses, free of noise, at the ``(N, D)`` that were run.
    """
    k, g = cost_law(N, D, C)
    found = parabolas(N, D, C, surface(N, D))
    return float(found.N(at) / surface.optimum(at, k=k, g=g)[0] - 1)


def _allocation(points: Array, warnings: tuple[str, ...]) -> Allocation:
    C, N, D = points.reshape(-1, 3).T
    return Allocation(fit_power_law(C, N), fit_power_law(C, D), points, warnings)
