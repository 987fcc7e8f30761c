"""Adam without weight decay (Kingma & Ba 2015)."""

from __future__ import annotations

import optax

from dit.training.optimizers import Make


def build(*, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Make:
    return lambda schedule, axes: optax.adam(schedule, *betas, eps)
