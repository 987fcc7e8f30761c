"""AdamW (Loshchilov & Hutter 2019): Adam with decoupled weight decay, multiplied by the rate."""

from __future__ import annotations

import optax

from dit.training.optimizers import Make, decayed
from dit.training.transfer import Transfer, scale_rates
from dit.types import Count, Decay, Fraction, NonNegative, Tiny


def build(
    *,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: Tiny = 1e-8,
    weight_decay: NonNegative = 0.0,
    mup_base_width: Count | None = None,
    mup_base_depth: Count | None = None,
    mup_depth_power: Fraction = 1.0,
) -> Make:
    """Matrices decay; see ``decayed``. The defaults are the original DiT's.

    ``mup_base_width``, ``mup_base_depth``: the sizes at which the rate was tuned
    (``training.transfer``).
    """
    transfer = Transfer(mup_base_width, mup_base_depth, mup_depth_power)

    def make(schedule, axes):
        b1, b2 = betas
        mask = decayed(axes)
        if not transfer:
            return optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=mask)
        return optax.chain(
            optax.scale_by_adam(b1, b2, eps),
            scale_rates(transfer, axes),
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(schedule),
        )

    return make
