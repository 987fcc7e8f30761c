"""Equal steps in log-SNR, from t_max to t_min, then to data (Lu et al. 2022a, sec. 3.4)."""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp

from dit.diffusion.path import time_of_logsnr
from dit.sampling.grids import GridFn, check_steps, closed, logsnr_ends
from dit.types import Range, UserError

Level = Annotated[float, Range(-80, 80)]


def build(*, low: Level = -10.0, high: Level = 10.0) -> GridFn:
    """``low`` and ``high``: log-SNRs in place of the path's own at an end where that is infinite
    (the first step then goes from t_max to the second value). UserError unless ``low < high``."""
    if not low < high:
        raise UserError(f"got low={low}, high={high}; expected low < high")

    def grid(path, steps):
        check_steps(steps)
        noisy, clean = logsnr_ends(path, jnp.exp(-0.5 * low), jnp.exp(-0.5 * high))
        return closed(path, time_of_logsnr(path, jnp.linspace(noisy, clean, steps)))

    return grid
