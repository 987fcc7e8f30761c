"""A linear warm-up, then the same rate."""

from __future__ import annotations

import optax

from dit.training.schedules import check_warmup, warm_up
from dit.types import Positive, Whole


def build(*, lr: Positive, warmup: Whole = 1000) -> optax.Schedule:
    """Raises UserError for a negative ``warmup``."""
    check_warmup(warmup)
    return warm_up(lr, warmup)
