"""Gradient descent with Nesterov's momentum."""

from __future__ import annotations

import optax

from dit.training.optimizers import Make
from dit.types import Decay


def build(*, momentum: Decay = 0.9, nesterov: bool = True) -> Make:
    return lambda schedule, axes: optax.sgd(schedule, momentum, nesterov)
