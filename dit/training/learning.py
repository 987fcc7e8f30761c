"""Whether a run learns anything: compares its loss with that of the best constant prediction.

A training loop with wrong gradients runs as smoothly as a correct one. So after a tenth of the run and
at its end, the loss is compared with one that needs no learning (``objectives.constant``), and a line is
logged if it is no better.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from dit import rng
from dit.data.pipeline import Batches
from dit.objectives.constant import Constant, Moments
from dit.types import Params

log = logging.getLogger(__name__)

NUMBERS, MOST, LEAST = 2**24, 1024, 16  # how much data the moments are taken from
CHUNK, THREADS = 2**22, 8  # numbers encoded at once; examples read at once
EARLY = 100  # updates before which a run is judged only at its end


def moments(batches: Batches, encode: Callable[..., Any], codec: Params | None = None) -> Moments:
    """The moments of encoded training data, from a random sample: the first examples of the stream.

    At most 1,024 examples of each shape, fewer where they are large. ``codec``: the parameters of
    ``encode``.
    """
    plan = batches.plan
    parts = [(plan.shares[i], _moments(batches, encode, codec or {}, i)) for i in batches.coming()]
    return parts[0][1] if len(parts) == 1 else mixed(parts)


def _moments(batches: Batches, encode: Callable[..., Any], codec: Params, bucket: int) -> Moments:
    key = rng.root(0)

    @jax.jit
    def encoded(codec, x, ids):
        return encode(codec, x, key, ids)

    shape, dtype = batches.shapes(bucket)["x"]
    row, number = (jax.ShapeDtypeStruct(s, d) for s, d in ((shape, dtype), (shape[:1], "int32")))
    size = math.prod(jax.eval_shape(encoded, codec, row, number).shape[1:])
    limit = min(MOST, max(LEAST, NUMBERS // size))
    there = None if batches.endless else batches.plan.sizes[bucket]
    count = limit if there is None else min(limit, there)
    step = max(1, min(count, CHUNK // size))
    parts = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, count, step):
            ids = np.arange(start, min(start + step, count), dtype=np.int32)
            read = pool.map(lambda i: batches.look([int(i)], bucket)["x"], ids)
            x = np.concatenate(list(read))
            parts.append(np.asarray(encoded(codec, x, ids)).reshape(-1, size))
    z = np.concatenate(parts)
    z = z - z.mean(0, dtype=np.float64)  # a pixel's mean over examples
    distance = np.square(z).mean(1)
    whole = count == there
    return Moments(
        variance=float(distance.sum() / (count if whole else max(count - 1, 1))),
        std=float(distance.std()),
        size=size,
        count=count,
        all=whole,
    )


def mixed(parts: Sequence[tuple[float, Moments]]) -> Moments:
    """The moments of examples of several shapes, from the share and the moments of each.

    The loss of a constant is linear in the variance, so this is a mean; the spread is a standard
    deviation over all examples.
    """
    share = np.array([share for share, _ in parts])
    variance, std, size = (
        np.array([getattr(m, name) for _, m in parts]) for name in ("variance", "std", "size")
    )
    mean = share @ variance
    return Moments(
        variance=float(mean),
        std=math.sqrt(share @ (std**2 + (variance - mean) ** 2)),
        size=round(1 / (share @ (1 / size))),
        count=sum(m.count for _, m in parts),
        all=all(m.all for _, m in parts),
    )


class Learning:
    """Watches the losses of a run of ``steps`` steps that starts at ``step``, and warns."""

    def __init__(
        self, constant: Constant | None, *, step: int, steps: int, batch: int | float, every: int
    ):
        self._constant, self._steps, self._batch, self._every = constant, steps, batch, every
        self._early = max(EARLY, -(-steps // 10))
        self._asked = step >= self._early
        self._rows: list[tuple[int, float]] = []  # numbers of steps, and their mean losses

    @property
    def row(self) -> dict[str, float]:
        """The constant's loss, for a row of metrics."""
        return {} if self._constant is None else {"loss_constant": self._constant.loss}

    def note(self, row: dict[str, Any]) -> None:
        """Record a row of metrics; after a tenth of the run, warn if nothing has been learned."""
        step, loss = int(row["step"]), float(row["loss"]) - float(row.get("vb", 0.0))
        if math.isfinite(loss):
            self._rows.append((step - (step - 1) // self._every * self._every, loss))
        if not self._asked and self._early <= step < self._steps:
            self._asked = True
            self._say(step)

    def conclude(self, step: int) -> None:
        """Warn at the end of the run, if nothing has been learned."""
        if step >= self._steps:
            self._say(step)

    def _say(self, step: int) -> None:
        """Judge by the latest rows: at least one interval, and a twentieth of the steps so far."""
        count, total = 0, 0.0
        for steps, loss in reversed(self._rows):
            count, total = count + steps, total + steps * loss
            if count >= max(self._every, step // 20):
                break
        if self._constant is None or not count:
            return
        if not self._constant.beaten_by(total / count, count * self._batch):
            log.warning(
                "the loss, %.4g, is no better than that of the best constant prediction, %.4g: in %d "
                "steps the model has learned nothing from its input. Too few steps, a learning rate "
                "that is too low or too high, data that are noise, or wrong gradients: see curve.png",
                total / count,
                self._constant.loss,
                step,
            )


def constant_of(experiment: Any, batches: Batches) -> Constant | None:
    """The experiment's constant, or None if it cannot be computed, which must not stop training."""
    try:
        return experiment.constant(batches)
    except Exception as error:
        log.warning("the score of the best constant prediction is not known (%s)", error)
        return None
