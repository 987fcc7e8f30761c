"""Learning-rate schedules, one a file; ``build(*, lr, ...) -> schedule(update number) -> rate``.

The first update is number 0. A schedule that names the keyword ``steps`` depends on the length of the
run. Warm-up is linear and ends at the full rate on its last update: ``lr (s + 1) / warmup``.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dit.types import UserError

Step = int | Int[Array, ""]


def warm(step: Step, warmup: int) -> Float[Array, ""]:
    """The factor of a linear warm-up: ``min(1, (step + 1) / warmup)``."""
    return jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def check_warmup(warmup: int, steps: int | None = None) -> None:
    """Raise UserError unless the warm-up is not negative and leaves steps after it."""
    if warmup < 0 or (steps is not None and warmup >= steps):
        raise UserError(
            f"got warmup={warmup}"
            + ("" if steps is None else f" in a run of {steps} steps")
            + "; expected 0 or more steps, and fewer than the run has"
        )
