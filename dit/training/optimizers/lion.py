"""Lion: the sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

from __future__ import annotations

import optax

from dit.training.optimizers import Make, decayed
from dit.types import Decay, NonNegative


def build(*, betas: tuple[Decay, Decay] = (0.9, 0.99), weight_decay: NonNegative = 0.0) -> Make:
    """Needs a rate 3 to 10 times smaller than AdamW's. Matrices decay; see ``decayed``."""

    def make(schedule, axes):
        return optax.lion(schedule, *betas, weight_decay=weight_decay, mask=decayed(axes))

    return make
