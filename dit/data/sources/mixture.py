"""Several sources in one run: images beside clips, pictures of several aspect ratios.

Each part is a source, ``{"name": ..., **its options}``, with one bucket or more. Buckets of one shape
become one, and each batch comes from one bucket (``dit.data.plan``). Parts are seen in proportion to
their sizes; endless ones, equally often. Labels mean the same in all of them.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from typing import Any

from dit.config import resolve
from dit.data.source import (
    STREAM_LENGTH,
    Bucket,
    Example,
    Shape,
    Source,
    Transform,
    check_index,
    identity,
)
from dit.types import UserError


def build(*, parts: tuple[dict[str, Any], ...]) -> Source:
    """The source made of ``parts``, of which the first gives the shape that samples have by default.

    Raises UserError for parts that differ in classes, channels or augmentations, and for finite parts
    beside endless ones.
    """
    for i, part in enumerate(parts):
        if not isinstance(part.get("name"), str):
            raise UserError(
                f"got parts[{i}]={part!r}; expected a source, such as {{'name': 'digits'}}"
            )
    sources = [resolve("data.sources", **part) for part in parts]
    if not sources:
        raise UserError("got a mixture of no parts; expected one source or more")
    first = sources[0]
    for i, source in enumerate(sources):
        for what, a, b in (
            ("classes", source.num_classes, first.num_classes),
            ("augmentations", source.train.transforms, first.train.transforms),
            ("being endless", source.streaming, first.streaming),
        ):
            if a != b:
                raise UserError(
                    f"got parts that differ in {what}: {a} in parts[{i}] ({parts[i]['name']!r}), {b} in "
                    f"parts[0] ({parts[0]['name']!r}); expected the same in all: change or drop one"
                )
    name = identity("mixture", parts=[source.fingerprint for source in sources])
    shapes = tuple(dict.fromkeys(shape for source in sources for shape in source.shapes))
    train, held_out = (
        mixed(sources, part, shapes, f"{name}/{part}") for part in ("train", "held_out")
    )
    return Source(
        train,
        held_out,
        first.shape,
        first.num_classes,
        name,
        first.streaming,
        shapes=shapes,
        parts=tuple(sources),
    )


def mixed(sources: list[Source], split: str, shapes: tuple[Shape, ...], name: str) -> Mixture:
    """What the sources have of each shape in turn; of endless ones the beginnings, all of one length."""
    found = [
        [
            Bucket(getattr(source, split), i)
            for source in sources
            for i, own in enumerate(source.shapes)
            if own == shape
        ]
        for shape in shapes
    ]
    buckets = tuple(bucket for same in found for bucket in same)
    taken, first = [len(bucket) for bucket in buckets], getattr(sources[0], split)
    if first.streaming:
        taken = [min(*taken, STREAM_LENGTH // len(taken))] * len(taken)
    ends = list(itertools.accumulate(map(len, found), initial=0))
    sizes = tuple(sum(taken[a:b]) for a, b in itertools.pairwise(ends))
    return Mixture(buckets, tuple(taken), sizes, name, first.streaming, first.transforms)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The first ``taken`` examples of each of several buckets, one shape after the other.

    ``bucket_sizes``: how many examples there are of each shape.
    """

    buckets: tuple[Bucket, ...]
    taken: tuple[int, ...]
    bucket_sizes: tuple[int, ...]
    fingerprint: str
    streaming: bool
    transforms: tuple[Transform, ...]

    def __len__(self) -> int:
        return sum(self.taken)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        ends = list(itertools.accumulate(self.taken))
        bucket = bisect.bisect_right(ends, i)
        return self.buckets[bucket][i - ends[bucket] + self.taken[bucket]]
