"""Unit Gaussian noise of any shape, with labels: a stand-in where only shapes and speed matter.

Benchmarks, and recipes whose data are not on this machine, run on it. Nothing can be learnt from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dit.data.source import (
    STREAM_LENGTH,
    Example,
    Source,
    Transform,
    check_index,
    generator,
    identity,
)
from dit.types import UserError


def build(
    *, shape: tuple[int, int, int, int], num_classes: int | None = None, seed: int = 0
) -> Source:
    """Float32 noise of ``shape`` (f, h, w, c); labels uniform in ``[0, num_classes)``."""
    if min(shape) < 1 or (num_classes is not None and num_classes < 1):
        raise UserError(f"got shape={shape}, num_classes={num_classes}; expected positive numbers")
    name = identity("noise", shape=shape, num_classes=num_classes, seed=seed)
    train, held_out = (
        Noise(shape, num_classes or 1, seed, length, f"{name}/{part}")
        for part, length in (("train", STREAM_LENGTH), ("held_out", 1000))
    )
    return Source(train, held_out, tuple(shape), num_classes, name, streaming=True)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Example ``i`` is a pure function of the seed, the split and ``i``."""

    shape: tuple[int, ...]
    num_classes: int
    seed: int
    length: int
    fingerprint: str
    streaming: bool = True
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        check_index(i, self.length)
        rng = generator(self.seed, self.fingerprint.rsplit("/")[-1], i)
        label = int(rng.integers(self.num_classes))
        return {"x": rng.standard_normal(self.shape, np.float32), "label": label}
