"""Power laws of one variable: ``y = coefficient x^exponent + floor``.

Both kinds minimise relative errors (least squares in ``log y``). With a floor the exponent is negative,
as the loss falls towards it; without one the fit is a straight line in logs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from dit.scaling import terms

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """``y = coefficient x^exponent + floor``. ``error``: the root mean square of the log residuals."""

    coefficient: float
    exponent: float
    floor: float = 0.0
    error: float = 0.0

    def __call__(self, x) -> Float[Array, "..."] | float:
        """The law at ``x``."""
        return self.coefficient * np.asarray(x, np.float64) ** self.exponent + self.floor


def fit_power_law(x, y, *, floor: bool = False) -> PowerLaw:
    """Fit the law to the points ``(x, y)``, in ``log y``.

    Raises UserError for numbers that are not positive and for fewer points than parameters.
    """
    x, y = terms.positive(x=x, y=y)
    terms.need(len(set(x)), 2 + floor, f"a power law with{'' if floor else 'out'} a floor")
    x0 = terms.centre(x)
    u, v = np.log(x / x0), np.log(y)
    exponent, intercept = np.polyfit(u, v, 1)
    if not floor:
        error = float(np.sqrt(np.mean((intercept + exponent * u - v) ** 2)))
        return PowerLaw(
            float(np.exp(intercept - exponent * np.log(x0))), float(exponent), 0.0, error
        )
    matrix = terms.design(True, u)
    starts = law_starts(u, y)
    theta, cost = terms.solve(matrix, v[None], starts)
    e, a, g = theta[cost.argmin()]
    error = float(np.sqrt(2 * cost.min() / len(x)))
    return PowerLaw(float(np.exp(a + g * np.log(x0))), float(-g), float(np.exp(e)), error)


def law_starts(u: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, "s 3"]:
    """``(log floor, log coefficient, exponent)`` of lines through ``log(y - floor)``."""
    rows = []
    for share in (0.05, 0.3, 0.6, 0.8, 0.9, 0.97, 0.999):
        floor = share * y.min()
        slope, intercept = np.polyfit(u, np.log(y - floor), 1)
        rows.append((np.log(floor), intercept, -slope))
    return np.array(rows)
