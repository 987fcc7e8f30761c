"""EDM's noise levels: ``log(sigma / alpha) ~ N(mean, std^2)`` (Karras et al. 2022, table 1).

On EDM's own path the ratio is the time itself; on any other it is solved for.
"""

from __future__ import annotations

from jax.scipy.special import ndtri

from dit.diffusion.path import time_of_logsnr
from dit.diffusion.times import Quantile
from dit.types import Number, Positive


def build(*, mean: Number = -1.2, std: Positive = 1.2) -> Quantile:
    def quantile(path, u):
        return time_of_logsnr(path, -2 * (mean + std * ndtri(u)))

    return quantile
