"""From an item to a record: pure in the item and the options."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit.data import aspects, npy, pictures, records
from dit.data.prepare import MOST_PIXELS, Item, copies
from dit.data.prepare.said import captions_of
from dit.data.resize import fill


@dataclasses.dataclass(frozen=True)
class Options:
    """What the records depend on. ``sizes``: (height, width), of which each picture has the nearest.

    ``classes``: how many there are; None: one more than the largest label. ``held_out``: the fraction
    kept out of training. ``fields``: what every record must have; None: what most items have.
    ``shard_bytes``: of pictures in a shard.
    """

    sizes: tuple[tuple[int, int], ...]
    channels: int = 3
    held_out: float = 0.01
    classes: int | None = None
    fields: tuple[str, ...] | None = None
    drop_copies: bool = False
    shard_bytes: int = 2**28
    most_pixels: int = MOST_PIXELS

    @functools.cached_property
    def features(self) -> Any:
        """Those of ``fields_of_all``."""
        return records.features(self.fields_of_all)

    @property
    def fields_of_all(self) -> dict[str, Any]:
        """The fields of a record while it is not known which of them all have."""
        fields = {"sizes": self.sizes, "channels": self.channels, "captions": True}
        return fields | {"classes": 2**31 - 1}

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


def record(item: Item, options: Options) -> tuple[bytes, tuple]:
    """``(record, row of the table)``. Raises ValueError, with the reason, for a bad item."""
    captions = captions_of(item.captions)
    if item.label is not None and options.classes is not None and item.label >= options.classes:
        raise ValueError(f"its label is {item.label}; expected 0 to {options.classes - 1}")
    x, size, bucket = shown(item, options)
    words = identity(item.picture)
    png = encoded(x)
    example = {"image": io.BytesIO(png), "size": np.array(size, np.int32), "id": words}
    label = -1 if item.label is None else item.label
    whole = serialized(options.features, {**example, "label": label, "caption": captions})
    values = x.reshape(-1, x.shape[-1]).astype(np.int64)
    held = -1 if item.held_out is None else int(item.held_out)
    code, colours = copies.look(x) if options.drop_copies else (0, ())
    sums = values.sum(0), (values**2).sum(0)
    return whole, (words, label, len(captions), held, bucket, len(whole), *sums, code, colours)


def serialized(features: Any, example: dict[str, Any]) -> bytes:
    """The example as TFDS writes it, with its fields always in the same order."""
    from tensorflow_datasets.proto import tf_example_pb2

    plain = features.serialize_example(example)
    return tf_example_pb2.Example.FromString(plain).SerializeToString(deterministic=True)


def shown(item: Item, options: Options) -> tuple[UInt8[np.ndarray, "h w c"], tuple[int, int], int]:
    """``(pixels, height and width of the original, which size)``."""
    x = item.picture
    if isinstance(x, bytes) and x.startswith(np.lib.format.MAGIC_PREFIX):
        x = npy.from_bytes(x)
    if isinstance(x, np.ndarray):
        return fitted(pictures.drawn(x, options.channels), options)
    with pictures.opened(item.name, io.BytesIO(item.picture)) as image:
        if image.width * image.height > options.most_pixels:
            raise ValueError(
                f"{image.width} x {image.height} pixels; expected at most {options.most_pixels}"
            )
        return fitted(pictures.upright(image, options.channels), options)


def fitted(image: Any, options: Options) -> tuple[UInt8[np.ndarray, "h w c"], tuple[int, int], int]:
    """The middle of an upright picture in the nearest of the sizes."""
    size = image.height, image.width
    bucket = int(aspects.closest(np.array([size]), options.sizes)[0])
    return fill(image, *options.sizes[bucket]), size, bucket


def identity(picture: bytes | np.ndarray) -> np.ndarray:
    """Two uint32 words, equal for equal files."""
    if isinstance(picture, np.ndarray):
        picture = f"{picture.dtype}{picture.shape}".encode() + picture.tobytes()
    return np.frombuffer(hashlib.sha256(picture).digest()[:8], ">u4").astype(np.uint32)


def encoded(x: UInt8[np.ndarray, "h w c"]) -> bytes:
    """A picture as PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x).save(out, "PNG", compress_level=1)
    return out.getvalue()


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of files that hold a picture: those of ``data.pictures``, and arrays."""
    return pictures.suffixes() | {".npy"}
