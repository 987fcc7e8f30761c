"""Warm-up, stable, decay: linear up, flat, then down to ``final`` (Hu et al. 2024).

The ``sqrt`` shape of the decay is that of Hagele et al. 2024, section 3.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import optax

from dit.training.schedules import check_warmup, warm_up
from dit.types import Count, Fraction, Positive, Share, UserError, Whole


def build(
    *,
    lr: Positive,
    steps: Count,
    warmup: Whole = 1000,
    decay: Share = 0.2,
    shape: Literal["linear", "sqrt"] = "sqrt",
    final: Fraction = 0.0,
) -> optax.Schedule:
    """``decay``: the fraction of the steps in which the rate falls, as ``1 - x`` or ``1 - sqrt(x)``.

    Raises UserError for a ``decay`` outside (0, 1], or one that overlaps with the warm-up.
    """
    check_warmup(warmup, steps)
    length = decay * steps
    if not 0 < decay <= 1 or length + warmup > steps:
        raise UserError(
            f"got warmup={warmup} and decay={decay} of {steps} steps; expected a fraction in (0, 1] "
            "that leaves room for the warm-up"
        )

    def down(step):
        x = jnp.clip(step / length, 0.0, 1.0)
        return lr * (1 - (1 - final) * (x if shape == "linear" else jnp.sqrt(x)))

    return optax.join_schedules([warm_up(lr, warmup), down], [steps - length])
