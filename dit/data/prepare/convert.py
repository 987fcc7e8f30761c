"""From an item to its record, or to the records of its clips: pure in the item and the options."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit.data import aspects, clips, npy, pictures, records
from dit.data.clips import Taking
from dit.data.prepare import MOST_PIXELS, Item, copies
from dit.data.prepare.said import captions_of
from dit.data.resize import fill

Shown = tuple[UInt8[np.ndarray, "f h w c"], tuple[int, int], int]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the records depend on. ``sizes``: (height, width), of which each picture has the nearest.

    ``classes``: how many there are; None: one more than the largest label. ``held_out``: the fraction
    kept out of training. ``fields``: what every record must have; None: what most items have.
    ``shard_bytes``: of pictures in a shard. ``taking``: which frames of videos make clips; None where
    the items are pictures.
    """

    sizes: tuple[tuple[int, int], ...]
    channels: int = 3
    held_out: float = 0.01
    classes: int | None = None
    fields: tuple[str, ...] | None = None
    drop_copies: bool = False
    shard_bytes: int = 2**28
    most_pixels: int = MOST_PIXELS
    taking: Taking | None = None

    @functools.cached_property
    def features(self) -> Any:
        """Those of ``fields_of_all``."""
        return records.features(self.fields_of_all)

    @property
    def fields_of_all(self) -> dict[str, Any]:
        """The fields of a record while it is not known which of them all have."""
        fields = {"sizes": self.sizes, "channels": self.channels, "captions": True}
        return fields | {"classes": 2**31 - 1} | self.clips

    @property
    def clips(self) -> dict[str, Any]:
        """What a manifest says of clips besides: how many frames each has."""
        return {} if self.taking is None else {"frames": self.taking.frames}

    @property
    def table(self) -> np.dtype:
        """What is known of a record without reading it; sums are of its pixels."""
        return np.dtype(
            [
                ("id", "<u4", 2),
                ("label", "<i8"),  # -1: none
                ("captions", "<i4"),  # how many
                ("held_out", "i1"),  # -1: the input does not say
                ("bucket", "<i4"),
                ("bytes", "<i8"),
                ("sum", "<f8", self.channels),
                ("squares", "<f8", self.channels),
                ("hash", "<u8"),
                ("colours", "u1", 3 * copies.THUMB**2 if self.drop_copies else 0),
            ]
        )


def made_of(item: Item, options: Options) -> Iterator[tuple[bytes, tuple]]:
    """``(record, row of the table)`` of a picture, or of each clip of a video.

    Raises ValueError, with the reason, for a bad item.
    """
    captions = captions_of(item.captions)
    if item.label is not None and options.classes is not None and item.label >= options.classes:
        raise ValueError(f"its label is {item.label}; expected 0 to {options.classes - 1}")
    own = identity(item.picture)
    label = -1 if item.label is None else item.label
    held = -1 if item.held_out is None else int(item.held_out)
    for x, size, bucket in shown(item, options):
        pngs = [io.BytesIO(encoded(frame)) for frame in x]
        seen = {"image": pngs[0]} if options.taking is None else {"video": pngs}
        example = {**seen, "size": np.array(size, np.int32), "id": own}
        whole = serialized(options.features, {**example, "label": label, "caption": captions})
        values = x.reshape(-1, x.shape[-1]).astype(np.int64)
        code, colours = copies.look(x[len(x) // 2]) if options.drop_copies else (0, ())
        sums = values.sum(0), (values**2).sum(0)
        yield whole, (own, label, len(captions), held, bucket, len(whole), *sums, code, colours)


def serialized(features: Any, example: dict[str, Any]) -> bytes:
    """The example as TFDS writes it, with its fields always in the same order."""
    from tensorflow_datasets.proto import tf_example_pb2

    plain = features.serialize_example(example)
    return tf_example_pb2.Example.FromString(plain).SerializeToString(deterministic=True)


def shown(item: Item, options: Options) -> Iterator[Shown]:
    """``(pixels, height and width of the original, which size)`` of a picture or of each clip."""
    if options.taking is not None:
        yield from clips_of(item, options)
        return
    x = item.picture
    if isinstance(x, bytes) and x.startswith(np.lib.format.MAGIC_PREFIX):
        x = npy.from_bytes(x)
    if isinstance(x, np.ndarray):
        yield fitted(pictures.drawn(x, options.channels), options)
        return
    with pictures.opened(item.name, io.BytesIO(item.picture)) as image:
        if image.width * image.height > options.most_pixels:
            raise ValueError(
                f"{image.width} x {image.height} pixels; expected at most {options.most_pixels}"
            )
        yield fitted(pictures.upright(image, options.channels), options)


def clips_of(item: Item, options: Options) -> Iterator[Shown]:
    """Each clip of a video, with the size of its first frame."""
    seen: list[tuple[tuple[int, int], int]] = []

    def fit(image: Any) -> UInt8[np.ndarray, "h w c"]:
        x, *rest = fitted(image, options)
        seen.append(tuple(rest))
        return x[0]

    file = item.picture if isinstance(item.picture, bytes) else str(item.picture)
    limits = options.channels, options.most_pixels
    for x in clips.read(file, options.taking, fit, *limits):
        yield x, *seen[0]


def fitted(image: Any, options: Options) -> Shown:
    """The middle of an upright picture in the nearest of the sizes, as one frame."""
    size = image.height, image.width
    bucket = int(aspects.closest(np.array([size]), options.sizes)[0])
    return fill(image, *options.sizes[bucket])[None], size, bucket


def identity(picture: bytes | pathlib.Path | np.ndarray) -> np.ndarray:
    """Two uint32 words, equal for equal files: the clips of a video have one id."""
    if isinstance(picture, pathlib.Path):
        with open(picture, "rb") as file:
            return words(hashlib.file_digest(file, "sha256").digest())
    if isinstance(picture, np.ndarray):
        picture = f"{picture.dtype}{picture.shape}".encode() + picture.tobytes()
    return words(hashlib.sha256(picture).digest())


def words(digest: bytes) -> np.ndarray:
    """The first two uint32 of a digest."""
    return np.frombuffer(digest[:8], ">u4").astype(np.uint32)


def encoded(x: UInt8[np.ndarray, "h w c"]) -> bytes:
    """A picture as PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x).save(out, "PNG", compress_level=1)
    return out.getvalue()


@functools.cache
def suffixes(videos: bool = False) -> frozenset[str]:
    """The suffixes of files that hold a picture, or an array of one; or else a video."""
    return frozenset(clips.SUFFIXES) if videos else pictures.suffixes() | {".npy"}
