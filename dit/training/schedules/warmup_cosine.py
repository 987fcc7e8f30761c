"""A linear warm-up, then half a cosine to ``final`` of the rate (Loshchilov & Hutter 2017)."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from dit.training.schedules import check_warmup, warm_up
from dit.types import Count, Fraction, Positive, Whole


def build(
    *, lr: Positive, steps: Count, warmup: Whole = 1000, final: Fraction = 0.0
) -> optax.Schedule:
    """``final``: the fraction of the rate at ``steps``. Raises UserError unless warmup < steps."""
    check_warmup(warmup, steps)

    def cosine(step):
        progress = jnp.clip(step / (steps - warmup), 0.0, 1.0)
        return lr * (final + (1 - final) * (0.5 * (1 + jnp.cos(jnp.pi * progress))))

    return optax.join_schedules([warm_up(lr, warmup), cosine], [warmup])
