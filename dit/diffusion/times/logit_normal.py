"""Logit-normal times: ``logit(t) ~ N(mean, std^2)`` (Esser et al. 2024, eq. 19)."""

from __future__ import annotations

import jax
from jax.scipy.special import ndtri

from dit.diffusion.times import Quantile
from dit.types import Number, Positive


def build(*, mean: Number = 0.0, std: Positive = 1.0) -> Quantile:
    """Over ``[t_min, t_max]``."""

    def quantile(path, u):
        return path.t_min + (path.t_max - path.t_min) * jax.nn.sigmoid(mean + std * ndtri(u))

    return quantile
