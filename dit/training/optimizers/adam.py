"""Adam without weight decay (Kingma & Ba 2015)."""

from __future__ import annotations

import optax

from dit.training.optimizers import Make
from dit.types import Decay, Tiny


def build(*, betas: tuple[Decay, Decay] = (0.9, 0.999), eps: Tiny = 1e-8) -> Make:
    return lambda schedule, axes: optax.adam(schedule, *betas, eps)
