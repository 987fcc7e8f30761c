"""Several sources in one run: images beside clips, pictures of several aspect ratios.

Each part is a source, ``{"name": ..., **its options}``, with one bucket or more, and each batch comes
from one bucket (``dit.data.plan``). Parts are seen in proportion to their sizes, and endless ones
equally often, and buckets of one shape become one; or, with a ``weight`` beside the options of each, in
proportion to these, and then a small part is gone through more often than a large one. Labels mean the
same in all of them.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from typing import Any

import numpy as np

from dit.config import resolve
from dit.data.source import (
    STREAM_LENGTH,
    Bucket,
    Example,
    Source,
    Transform,
    check_index,
    identity,
)
from dit.types import UserError

SCALE = 2**32  # of weights that are whole numbers


def build(*, parts: tuple[dict[str, Any], ...]) -> Source:
    """The source made of ``parts``, of which the first gives the shape that samples have by default.

    Raises UserError for parts that differ in classes, channels, augmentations or the codec that made
    their latents, for finite parts beside endless ones, for parts without training examples, and for
    weights of some of the parts.
    """
    for i, part in enumerate(parts):
        if not isinstance(part.get("name"), str):
            raise UserError(
                f"got parts[{i}]={part!r}; expected a source, such as {{'name': 'digits'}}"
            )
    weights = weights_of(parts)
    sources = [
        resolve("data.sources", **{k: v for k, v in part.items() if k != "weight"})
        for part in parts
    ]
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
        if not len(source.train):
            raise UserError(
                f"got parts[{i}] ({parts[i]['name']!r}) without training examples: leave it out"
            )
    given = {} if weights is None else {"weights": weights}
    name = identity("mixture", parts=[source.fingerprint for source in sources], **given)
    shapes = tuple(shape for source in sources for shape in source.shapes)
    shapes = shapes if weights else tuple(dict.fromkeys(shapes))
    train, held_out = (
        mixed(sources, part, weights, f"{name}/{part}") for part in ("train", "held_out")
    )
    rest = {"shapes": shapes, "codec": first.codec, "text": first.text, "parts": tuple(sources)}
    return Source(train, held_out, first.shape, first.num_classes, name, first.streaming, **rest)


def weights_of(parts: tuple[dict[str, Any], ...]) -> list[float] | None:
    """The weights of the parts; None where none has one."""
    given = [part.get("weight") for part in parts]
    if all(weight is None for weight in given):
        return None
    for i, weight in enumerate(given):
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 1e-6 <= weight <= 1e6:
            raise UserError(
                f"got parts[{i}] with weight {weight!r}; expected a number from 1e-6 to 1e6 for each "
                "part, or for none"
            )
    return [float(weight) for weight in given]


def mixed(sources: list[Source], part: str, weights: list[float] | None, name: str) -> Mixture:
    """All buckets of a split of the sources; of endless ones the beginnings, all of one length."""
    splits = [getattr(source, part) for source in sources]
    found = [
        (s, Bucket(split, i))
        for split, source in zip(splits, sources, strict=True)
        for i, s in enumerate(source.shapes)
    ]
    if weights is None:  # one shape after the other
        order = list(dict.fromkeys(shape for shape, _ in found))
        found.sort(key=lambda pair: order.index(pair[0]))
    buckets, streaming = [bucket for _, bucket in found], splits[0].streaming
    taken = [len(bucket) for bucket in buckets]
    if streaming:
        taken = [min(*taken, STREAM_LENGTH // len(taken))] * len(taken)
    if weights is None:
        together = itertools.groupby(zip(found, taken, strict=True), key=lambda pair: pair[0][0])
        sizes = turns = [sum(n for _, n in group) for _, group in together]
    else:
        counts = [len(source.shapes) for source in sources]
        sizes, turns = taken, turns_of(np.array(taken, np.float64), counts, weights)
    rest = name, streaming, splits[0].transforms
    return Mixture(tuple(buckets), tuple(taken), tuple(sizes), tuple(turns), *rest)


def turns_of(sizes: np.ndarray, counts: list[int], weights: list[float]) -> list[int]:
    """Whole weights of buckets, of which each part has ``counts``, in proportion within a part."""
    own = np.repeat(np.array(weights) / sum(weights), counts)
    whole = [part.sum() for part in np.split(sizes, np.cumsum(counts)[:-1])]
    share = own * sizes / np.maximum(np.repeat(whole, counts), 1)
    return [max(1, round(s * SCALE)) if n else 0 for s, n in zip(share, sizes, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The first ``taken`` examples of each of several buckets.

    ``bucket_sizes``: how many examples there are of each shape, where one shape's stand together.
    """

    buckets: tuple[Bucket, ...]
    taken: tuple[int, ...]
    bucket_sizes: tuple[int, ...]
    bucket_weights: tuple[int, ...]
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
