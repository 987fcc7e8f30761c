"""Equal steps in t from ``t_max`` to ``last``, and one more to data: as diffusers spaces SD3's times.

There ``last`` is the shifted first of 1000 training times: 3 / 1002 with a shift of 3.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.sampling.grids import GridFn, check_steps, closed
from dit.types import Share


def build(*, last: Share = 0.001) -> GridFn:
    """``last`` is a share of ``t_max``, or ``t_min`` if that is later.

    Raises UserError for less than one step.
    """

    def grid(path, steps):
        check_steps(steps)
        ends = path.t_max, max(last * path.t_max, path.t_min)
        return closed(path, jnp.linspace(*ends, steps))

    return grid
