"""Logit-normal times: ``logit(t) ~ N(mean, std^2)`` (Esser et al. 2024, eq. 19)."""

from __future__ import annotations

import jax
from jax.scipy.special import ndtri

from dit.diffusion.times import Quantile
from dit.types import UserError


def build(*, mean: float = 0.0, std: float = 1.0) -> Quantile:
    """Over ``[t_min, t_max]``. Raises UserError unless ``std`` is positive."""
    if not std > 0:
        raise UserError(f"got std={std} for the logit-normal times; expected a positive number")

    def quantile(path, u):
        return path.t_min + (path.t_max - path.t_min) * jax.nn.sigmoid(mean + std * ndtri(u))

    return quantile
