"""Small pictures of one coloured shape on a coloured ground, as many as are asked for.

Picture ``i`` is a pure function of ``(seed, i)``: a class (disc, square, diamond, ring, cross), a place,
a radius and two colours, drawn with edges one pixel soft. No two are alike, so there are no epochs: made
for scaling laws, where data must not repeat. Held-out pictures come from a stream of their own.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dit.data.source import STREAM_LENGTH, Example, Source, Stream, identity
from dit.scenes.outline import distance
from dit.types import Count, Seed, UserError

CLASSES = ("disc", "square", "diamond", "ring", "cross")


def build(*, size: Count = 8, seed: Seed = 0, held_out: Count = 2000) -> Source:
    """Pictures of ``size x size x 3`` uint8 in five classes; UserError below 4 pixels."""
    if size < 4 or held_out < 1:
        raise UserError(f"got size={size}, held_out={held_out}; expected at least 4 and 1")
    name = identity("shapes", size=size, seed=seed, held_out=held_out, version=1)
    train, aside = (
        Shapes(size=size, seed=seed, length=length, fingerprint=f"{name}/{part}")
        for part, length in (("train", STREAM_LENGTH), ("held_out", held_out))
    )
    return Source(train, aside, (1, size, size, 3), len(CLASSES), name, streaming=True)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Shapes(Stream):
    """See the module."""

    size: int

    def make(self, rng: np.random.Generator, i: int) -> Example:
        label = int(rng.integers(len(CLASSES)))
        u = rng.random(9)
        radius = self.size * (0.18 + 0.2 * u[0])
        middle = radius + (self.size - 2 * radius) * u[1:3]
        at = np.arange(self.size) + 0.5
        dy, dx = at[:, None] - middle[0], at[None] - middle[1]
        inside = np.clip(0.5 - distance(CLASSES[label], dy, dx, radius), 0, 1)[..., None]
        ground, colour = u[3:6], u[6:9]
        x = np.rint(255 * (inside * colour + (1 - inside) * ground)).astype(np.uint8)
        return {"x": x[None], "label": label}
