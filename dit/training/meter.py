"""Metrics summed on the device between two log steps, so that the host need not fetch them.

The meter is part of the training state and is saved with it, so a resumed run logs the same numbers as
one that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float


@struct.dataclass
class Meter:
    """Sums over the steps since the last log step.

    ``sums``: of each metric's mean over the batch. ``bin_loss``, ``bin_count``: the summed losses and
    the number of examples in each of the equal parts of ``[t_min, t_max]``. ``skipped``: how many
    batches of the whole run were skipped because their loss or gradient was not finite. ``bad``: set by
    the first such batch that may not be skipped, and never cleared; no update is made from then on. The
    fields are arrays or, in a description of the state, shapes or shardings.
    """

    steps: Any  # int32
    sums: dict[str, Any]  # scalars
    bin_loss: Any  # bins
    bin_count: Any  # bins
    skipped: Any  # int32
    bad: Any  # bool


def init(names: Iterable[str], bins: int) -> Meter:
    """An empty meter for the metrics ``names``."""
    return Meter(
        steps=jnp.zeros((), jnp.int32),
        sums={name: jnp.zeros(()) for name in sorted(names)},
        bin_loss=jnp.zeros(bins),
        bin_count=jnp.zeros(bins),
        skipped=jnp.zeros((), jnp.int32),
        bad=jnp.zeros((), bool),
    )


def add(
    meter: Meter,
    scalars: dict[str, Float[Array, ""]],
    loss: Float[Array, "*b"],
    u: Float[Array, "*b"] | None,
    fresh: Bool[Array, ""],
    weight: Float[Array, "*b"] | None = None,
) -> Meter:
    """The meter after one more step; ``fresh``: reset it first. ``u``: times scaled to [0, 1].

    None for losses without a time, which belong to no bin. ``weight``: zero where there is no example.
    """
    bins = meter.bin_loss.shape[0]
    if weight is not None:
        loss, u, weight = loss.ravel(), u.ravel(), weight.ravel()
    hit = jnp.zeros((len(loss), bins), meter.bin_loss.dtype)
    if u is not None:
        index = jnp.clip((u * bins).astype(jnp.int32), 0, bins - 1)
        hit = jax.nn.one_hot(index, bins, dtype=meter.bin_loss.dtype)
        hit = hit if weight is None else jnp.where(weight[:, None] > 0, hit, 0)
    kept = _emptied(meter, fresh)
    return kept.replace(
        steps=kept.steps + 1,
        sums={k: kept.sums[k] + scalars[k].astype(kept.sums[k].dtype) for k in meter.sums},
        bin_loss=kept.bin_loss + loss.astype(meter.bin_loss.dtype) @ hit,
        bin_count=kept.bin_count + hit.sum(0),
    )


def skip(meter: Meter, fresh: Bool[Array, ""]) -> Meter:
    """The meter after a skipped batch; ``fresh`` as for ``add``."""
    return _emptied(meter, fresh).replace(skipped=meter.skipped + 1)


def _emptied(meter: Meter, when: Bool[Array, ""]) -> Meter:
    empty = jax.tree.map(lambda x: jnp.where(when, jnp.zeros_like(x), x), meter)
    return empty.replace(skipped=meter.skipped, bad=meter.bad)


def means(meter: Meter) -> dict[str, Any]:
    """Each metric's mean over the steps, and ``loss_t``, the mean loss per bin; NaN for empty bins.

    There is no ``loss_t`` where no loss has a time.

    For a meter on the host: on a device, the NaNs would count as a mistake under ``JAX_DEBUG_NANS``.
    """
    found = {name: _mean(total, meter.steps) for name, total in meter.sums.items()}
    if not meter.steps or np.any(meter.bin_count):
        found["loss_t"] = _mean(meter.bin_loss, meter.bin_count)
    return found


def _mean(total: Any, count: Any) -> np.ndarray:
    total = np.asarray(total)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=np.asarray(count) > 0)
