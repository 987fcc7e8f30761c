"""Unit Gaussian noise of any shape, with labels or without, where only shapes and speed matter.

It stands in for data in benchmarks and for recipes whose data are elsewhere. Nothing can be learnt
from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dit.data.source import STREAM_LENGTH, Example, Source, Stream, identity
from dit.types import Count, Seed, UserError


def build(
    *,
    shape: tuple[Count, Count, Count, Count],
    num_classes: Count | None = None,
    captioned: bool = False,
    seed: Seed = 0,
) -> Source:
    """Float32 noise of ``shape`` (f, h, w, c); labels uniform in ``[0, num_classes)``, or none.

    ``captioned``: each example has a caption, for what reads text.
    """
    if min(shape) < 1 or (num_classes is not None and num_classes < 1):
        raise UserError(f"got shape={shape}, num_classes={num_classes}; expected positive numbers")
    words = {"captioned": True} if captioned else {}
    name = identity("noise", shape=shape, num_classes=num_classes, seed=seed, **words)
    train, held_out = (
        Noise(
            shape=shape,
            num_classes=num_classes,
            captioned=captioned,
            seed=seed,
            length=length,
            fingerprint=f"{name}/{part}",
        )
        for part, length in (("train", STREAM_LENGTH), ("held_out", 1000))
    )
    return Source(train, held_out, tuple(shape), num_classes, name, streaming=True)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Noise(Stream):
    """Example ``i`` is a pure function of the seed, the split and ``i``."""

    shape: tuple[int, ...]
    num_classes: int | None
    captioned: bool

    def make(self, rng: np.random.Generator, i: int) -> Example:
        label = {} if self.num_classes is None else {"label": int(rng.integers(self.num_classes))}
        words = {"caption": "noise"} if self.captioned else {}
        return {"x": rng.standard_normal(self.shape, np.float32), **label, **words}
