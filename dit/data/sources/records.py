"""Records that ``dit prepare`` made: pictures with labels or captions, read at random from shards.

A shard is opened when one of its records is first asked for; no shard is read whole, and of ten million
records no more than the number in each shard is kept in memory. So the directory may be on a local disk
or in a bucket that is mounted (``gcsfuse``). The splits are those of the records: which are held out is
decided when they are prepared. Where they have several sizes, each has a bucket. Where an example has
several captions, one of them is taken each time in training, and the first one of what is held out.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import numpy as np

from dit.config import fingerprint
from dit.data import records
from dit.data.records import Shards
from dit.data.source import Example, Source, Transform, check_index, identity
from dit.data.transforms import random_flip
from dit.data.travel import Travels
from dit.types import UserError, first_line


def build(*, path: str, flip: bool = False) -> Source:
    """The records in ``path``; ``flip`` mirrors training pictures at random.

    Raises UserError where there are none, or other shards than the manifest says.
    """
    root = pathlib.Path(path).expanduser()
    manifest = records.read_manifest(root)
    records.check_shards(root, manifest)
    fields = manifest["fields"]
    name = identity("records", content=fingerprint(manifest))
    train, held_out = (
        Records(
            Shards.of(root, manifest, split),
            fields,
            tuple(manifest["splits"][split]["buckets"]),
            f"{name}/{split}",
            training=split == "train",
            transforms=augmentations(fields, flip) if split == "train" else (),
        )
        for split in records.SPLITS
    )
    shapes = tuple((1, *size, fields["channels"]) for size in fields["sizes"])
    return Source(train, held_out, shapes[0], fields["classes"], name, shapes=shapes)


def augmentations(fields: dict[str, Any], flip: bool) -> tuple[Transform, ...]:
    """What is done to each training example."""
    return ((random_flip,) if flip else ()) + ((one_text,) if fields.get("text") else ())


def one_text(example: Example, rng: np.random.Generator) -> Example:
    """What the encoders made of one of the captions, in place of ``texts``."""
    rest = {k: v for k, v in example.items() if k != "texts"}
    texts = example["texts"]
    k = int(rng.integers(len(next(iter(texts.values())))))
    return {**rest, **{name: each[k] for name, each in texts.items()}}


@dataclasses.dataclass(frozen=True, eq=False)
class Records(Travels):
    """The records of a split, one size after the other."""

    shards: Shards
    fields: dict[str, Any]
    bucket_sizes: tuple[int, ...]
    fingerprint: str
    training: bool
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        try:
            found = self._read(self.shards[i])
            x = records.pixels(found["image"], self.fields["channels"])
        except UserError:
            raise
        except Exception as error:  # of a reader of files that may be damaged
            raise UserError(
                f"cannot read {self.shards.where(i)}: {first_line(error)}. Copy the shard again, or "
                "prepare the records again"
            ) from error
        if x.shape != self._size(i):
            raise UserError(f"{self.shards.where(i)} has shape {x.shape}; expected {self._size(i)}")
        example: Example = {"x": x[None]}
        if self.fields["classes"] is not None:
            example["label"] = int(found["label"])
        if self.fields["captions"]:
            example["caption"] = [text.decode() for text in found["caption"]]
        texts = {name: found[name] for name in self.fields.get("text", {})}
        example |= {name: each[0] for name, each in texts.items()}
        if texts and self.training:
            example["texts"] = texts
        return example

    def _size(self, i: int) -> tuple[int, int, int]:
        """Height, width and channels of picture ``i``."""
        bucket = bisect.bisect_right(list(itertools.accumulate(self.bucket_sizes)), i)
        return (*self.fields["sizes"][bucket], self.fields["channels"])

    @functools.cached_property
    def _read(self) -> Any:
        return records.reader(self.fields)

    def __getstate__(self) -> dict[str, Any]:
        return Travels.__getstate__(dataclasses.replace(self))  # without what each process makes
