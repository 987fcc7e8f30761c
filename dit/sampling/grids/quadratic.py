"""Steps that shrink towards data: ``t_i = t_max (1 - i / steps)^power`` (Song et al. 2020, sec.
D.2)."""

from __future__ import annotations

from dit.sampling.grids import GridFn, power_law
from dit.types import Power


def build(*, power: Power = 2.0) -> GridFn:
    """``power`` 2 is the quadratic grid, 1 the uniform one."""
    return lambda path, steps: power_law(path, steps, power)
