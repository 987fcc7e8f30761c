"""Equal steps in t: ``t_i = t_max (1 - i / steps)``."""

from __future__ import annotations

from dit.sampling.grids import GridFn, power_law


def build() -> GridFn:
    return lambda path, steps: power_law(path, steps, 1.0)
