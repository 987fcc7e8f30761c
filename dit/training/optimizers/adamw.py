"""AdamW (Loshchilov & Hutter 2019): Adam with weight decay apart from the gradient, times the rate."""

from __future__ import annotations

import optax

from dit.training.optimizers import Make, decayed


def build(
    *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Make:
    """Matrices decay; see ``decayed``. The defaults are the original DiT's."""

    def make(schedule, axes):
        b1, b2 = betas
        mask = decayed(axes)
        return optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=mask)

    return make
