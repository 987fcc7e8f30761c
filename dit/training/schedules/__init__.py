"""Learning-rate schedules, one a file; ``build(*, lr, ...) -> schedule(update number) -> rate``.

The first update is number 0. A schedule that names the keyword ``steps`` depends on the length of the
run. Warm-up is linear and ends at the full rate on its last update: ``lr (s + 1) / warmup``.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from dit.types import UserError


def warm_up(lr: float, warmup: int) -> optax.Schedule:
    """A linear warm-up, then the full rate: ``lr min(1, (s + 1) / warmup)``."""
    return lambda step: lr * jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def check_warmup(warmup: int, steps: int | None = None) -> None:
    """Raise UserError unless the warm-up is not negative and leaves steps after it."""
    if warmup < 0 or (steps is not None and warmup >= steps):
        raise UserError(
            f"got warmup={warmup}"
            + ("" if steps is None else f" in a run of {steps} steps")
            + "; expected 0 or more steps, and fewer than the run has"
        )
