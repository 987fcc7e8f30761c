"""Several sources in one run: images beside clips, pictures of several aspect ratios.

Each part is a source, ``{"name": ..., **its options}``, with one bucket or more, and each batch comes
from one bucket (``dit.data.plan``). Parts are seen in proportion to their sizes; endless ones,
equally often. Labels mean the same in all of them.
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
    Source,
    Split,
    Transform,
    bucket_sizes,
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
            ("the codec of their latents", source.codec, first.codec),
            ("the encoders of their texts", source.text, first.text),
        ):
            if a != b:
                raise UserError(
                    f"got parts that differ in {what}: {a} in parts[{i}] ({parts[i]['name']!r}), {b} in "
                    f"parts[0] ({parts[0]['name']!r}); expected the same in all: change or drop one"
                )
    name = identity("mixture", parts=[source.fingerprint for source in sources])
    shapes = tuple(shape for source in sources for shape in source.shapes)
    train, held_out = (
        mixed([getattr(source, part) for source in sources], f"{name}/{part}")
        for part in ("train", "held_out")
    )
    return Source(
        train,
        held_out,
        first.shape,
        first.num_classes,
        name,
        first.streaming,
        shapes=shapes,
        codec=first.codec,
        text=first.text,
    )


def mixed(splits: list[Split], fingerprint: str) -> Mixture:
    """All buckets of ``splits``, in order; of endless ones the beginnings, all of one length."""
    buckets = [Bucket(s, i) for s in splits for i in range(len(bucket_sizes(s)))]
    sizes, streaming = [len(bucket) for bucket in buckets], splits[0].streaming
    if streaming:
        sizes = [min(*sizes, STREAM_LENGTH // len(sizes))] * len(sizes)
    return Mixture(tuple(buckets), tuple(sizes), fingerprint, streaming, splits[0].transforms)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The first examples of each of several buckets, as many as ``bucket_sizes`` says."""

    buckets: tuple[Bucket, ...]
    bucket_sizes: tuple[int, ...]
    fingerprint: str
    streaming: bool
    transforms: tuple[Transform, ...]

    def __len__(self) -> int:
        return sum(self.bucket_sizes)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        ends = list(itertools.accumulate(self.bucket_sizes))
        bucket = bisect.bisect_right(ends, i)
        return self.buckets[bucket][i - ends[bucket] + self.bucket_sizes[bucket]]
