"""Records that ``dit prepare`` made: pictures or clips, labels, captions, read at random from shards.

A shard is opened when one of its records is first asked for; no shard is read whole, and of ten million
records no more than the number in each shard is kept in memory. So the directory may be on a local disk
or in a bucket that is mounted (``gcsfuse``). The splits are those of the records: which are held out is
decided when they are prepared. Where they have several sizes, each has a bucket. Where an example has
several captions, one of them is taken each time in training, and the first one of what is held out.
Of latents, another one is drawn each time in training; what is held out is their mean.
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
from dit.data.source import Example, Source, Transform, check_finite, check_index, identity
from dit.data.transforms import random_flip, sample_posterior
from dit.data.travel import Travels
from dit.types import Count, UserError, first_line


def build(
    *,
    path: str,
    flip: bool = False,
    num_classes: Count | None = None,
    shape: tuple[Count, Count, Count, Count] | None = None,
) -> Source:
    """The records in ``path``; ``flip`` mirrors training pictures at random.

    ``num_classes``, and ``shape`` of an example, ``(f, h, w, c)``: if they are to be checked; programs
    can then be compiled ahead of time where the records are not (``dit.preflight``). Raises UserError
    where there are no records, or others than these, or other shards than the manifest says.
    """
    root = pathlib.Path(path).expanduser()
    manifest = records.read_manifest(root)
    records.check_shards(root, manifest)
    fields = manifest["fields"]
    if flip and not fields.get("latents", {"flip": True})["flip"]:
        raise UserError(
            f"got data.flip=True, and {str(root)!r} has no latents of mirrored pictures: prepare the "
            "records again with --flip"
        )
    for what, got, found in (
        ("num_classes", num_classes, fields["classes"]),
        ("shape", shape, shapes_of(fields)[0]),
    ):
        if got not in (None, found):
            raise UserError(f"got data.{what}={got}; the records in {str(root)!r} have {found}")
    name = identity("records", content=fingerprint(manifest))
    part = functools.partial(Records, fields=fields, shapes=shapes_of(fields))
    train, held_out = (
        part(
            shards=Shards.of(root, manifest, split),
            bucket_sizes=tuple(manifest["splits"][split]["buckets"]),
            fingerprint=f"{name}/{split}",
            transforms=augmentations(fields, flip) if split == "train" else (),
        )
        for split in records.SPLITS
    )
    shapes = train.shapes
    codec = fields.get("latents", {}).get("codec", {}).get("weights")
    rest = {"shapes": shapes, "codec": codec, "text": fields.get("text_made_by")}
    return Source(train, held_out, shapes[0], fields["classes"], name, **rest)


def shapes_of(fields: dict[str, Any]) -> tuple[tuple[int, int, int, int], ...]:
    """The shape of an example of each bucket."""
    given = fields.get("latents", fields)
    return tuple((given.get("frames", 1), *size, given["channels"]) for size in given["sizes"])


def clip(stored: np.ndarray) -> np.ndarray:
    """Latents ``(f, h, w, c)``; those of a picture are stored without its one frame."""
    return stored if stored.ndim == 4 else stored[None]


def augmentations(fields: dict[str, Any], flip: bool) -> tuple[Transform, ...]:
    """What is done to each training example: to choose among what is stored, and to draw."""
    found: list[Transform] = []
    if flip:
        found.append(one_side if "latents" in fields else random_flip)
    if "latents" in fields:
        found.append(sample_posterior)
    if fields.get("text"):
        found.append(one_text)
    return (*found, *((chosen,) if {one_side, one_text} & set(found) else ()))


def one_side(example: Example, rng: np.random.Generator) -> Example:
    """The latents of the picture or of its mirror image."""
    return {**example, **example["mirrored"]} if rng.random() < 0.5 else example


def one_text(example: Example, rng: np.random.Generator) -> Example:
    """What the encoders made of one of the captions."""
    texts = example["texts"]
    k = int(rng.integers(len(next(iter(texts.values())))))
    return {**example, **{name: each[k] for name, each in texts.items()}}


def chosen(example: Example, rng: np.random.Generator) -> Example:
    """The example without what was to choose from."""
    return {k: v for k, v in example.items() if k not in ("mirrored", "texts")}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Records(Travels):
    """The records of a split, one size after the other.

    Those of training, which have ``transforms``, hold what these choose from.
    """

    shards: Shards
    fields: dict[str, Any]
    shapes: tuple[tuple[int, int, int, int], ...]
    bucket_sizes: tuple[int, ...]
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        try:
            found = self._read(self.shards[i])
            x = clip(found["mean"]) if "mean" in found else records.seen(found, self.fields)
        except UserError:
            raise
        except Exception as error:  # of a reader of files that may be damaged
            raise UserError(
                f"cannot read {self.shards.where(i)}: {first_line(error)}. Copy the shard again, or "
                "prepare the records again"
            ) from error
        if x.shape != (expected := self._shape(i)):
            raise UserError(f"{self.shards.where(i)} has shape {x.shape}; expected {expected}")
        check_finite(x, lambda: self.shards.where(i))
        example: Example = {"x": x}
        if self.fields["classes"] is not None:
            example["label"] = int(found["label"])
        if self.fields["captions"]:
            example["caption"] = [text.decode() for text in found["caption"]]
        texts = {name: found[name] for name in self.fields.get("text", {})}
        example |= {name: each[0] for name, each in texts.items()}
        return example | self._choices(found, texts) if self.transforms else example

    def _choices(self, found: dict[str, Any], texts: dict[str, Any]) -> dict[str, Any]:
        """What the transforms draw from or choose from."""
        more: dict[str, Any] = {"texts": texts} if texts else {}
        if "std" in found:
            more["std"] = clip(found["std"])
        if one_side in self.transforms:
            more["mirrored"] = {
                "x": clip(found["mean_flipped"]),
                "std": clip(found["std_flipped"]),
            }
        return more

    def _shape(self, i: int) -> tuple[int, int, int, int]:
        """Of example ``i``."""
        return self.shapes[bisect.bisect_right(list(itertools.accumulate(self.bucket_sizes)), i)]

    @functools.cached_property
    def _read(self) -> Any:
        return records.reader(self.fields)

    def __getstate__(self) -> dict[str, Any]:
        return Travels.__getstate__(dataclasses.replace(self))  # without what each process makes
