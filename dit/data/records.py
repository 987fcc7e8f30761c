"""What a directory of records holds: ArrayRecord shards that TFDS reads, and a manifest.

``manifest.json`` is written last, so where it is, all is there: the fields of a record, the shards with
their counts and hashes, the statistics of the channels, and the options they were made with. The shards
of a split come one size of pictures after the other, each shard of one size. A record has

    image    uint8 (h, w, c), as PNG; or video, the frames of a clip, each as PNG
    label    the class, where there are classes
    caption  its captions, one or more, where there are captions
    mean, std  of a codec's latents (h, w, c), or (f, h, w, c) of clips, instead; mean_flipped,
             std_flipped: mirrored
    context, context_mask, pooled   what text encoders make of each caption, where they were asked for;
                                    the manifest says by ``text_made_by`` which these were
    size     height and width of the original, upright
    id       two uint32 words, from a hash of the original's bytes: a copy has the same
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit.data.travel import Travels
from dit.types import UserError

FORMAT = 1  # of the manifest
NAME = "records"  # of the TFDS data set
MANIFEST = "manifest.json"
SPLITS = ("train", "held_out")
TAIL = 2**17  # bytes at the end of a shard that are looked at when it is opened


def features(fields: dict[str, Any]) -> Any:
    """The TFDS features of records with these ``fields``: see ``fields`` of a manifest."""
    import tensorflow_datasets as tfds

    f = tfds.features
    sizes = fields["sizes"]
    height, width = sizes[0] if len(sizes) == 1 else (None, None)
    found = {
        "size": f.Tensor(shape=(2,), dtype=np.int32),
        "id": f.Tensor(shape=(2,), dtype=np.uint32),
    }
    if "latents" not in fields:
        picture = f.Image(shape=(height, width, fields["channels"]), encoding_format="png")
        clip = {"video": f.Sequence(picture, length=fields.get("frames"))}
        found |= clip if "frames" in fields else {"image": picture}
    if fields["classes"] is not None:
        found["label"] = f.ClassLabel(num_classes=fields["classes"])
    if fields["captions"]:
        found["caption"] = f.Sequence(f.Text())
    return f.FeaturesDict({**found, **added(fields)})


def added(fields: dict[str, Any]) -> Any:
    """The features that encoders add to a record."""
    import tensorflow_datasets as tfds

    found = {}
    if "latents" in fields:
        given = fields["latents"]
        height, width = given["sizes"][0] if len(given["sizes"]) == 1 else (None, None)
        for name in latents(given["flip"]):
            frames = (given["frames"],) if "frames" in given else ()
            shape, dtype = (*frames, height, width, given["channels"]), np.dtype(given["dtype"])
            found[name] = tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
    for name, given in fields.get("text", {}).items():
        shape, dtype = (None, *given["shape"]), np.dtype(given["dtype"])
        found[name] = tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
    return tfds.features.FeaturesDict(found)


def latents(flip: bool) -> tuple[str, ...]:
    """The names of what is stored of a picture's latents."""
    return ("mean", "std") + (("mean_flipped", "std_flipped") if flip else ())


def reader(fields: dict[str, Any]) -> Callable[[bytes], dict[str, Any]]:
    """What gives the features of a record, of which pictures are still PNG."""
    import tensorflow_datasets as tfds

    found, skip = features(fields), None
    if "video" in found:  # of which TFDS knows no such way
        found = tfds.features.FeaturesDict(
            {**found, "video": tfds.features.Sequence(tfds.features.Text())}
        )
    elif "image" in found:
        skip = {"image": tfds.decode.SkipDecoding()}  # TFDS would look for OpenCV
    return functools.partial(found.deserialize_example_np, decoders=skip)


def seen(found: dict[str, Any], fields: dict[str, Any]) -> UInt8[np.ndarray, "f h w c"]:
    """The picture, or the clip, in a record that ``reader`` gave."""
    pngs = found["video"] if "frames" in fields else [found["image"]]
    return np.stack([pixels(png, fields["channels"]) for png in pngs])


def pixels(png: bytes, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """One picture of a record."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.asarray(image).reshape(image.height, image.width, channels)


def shard_name(split: str, i: int, of: int) -> str:
    """As TFDS names files."""
    return f"{NAME}-{split}.array_record-{i:05d}-of-{of:05d}"


def read_manifest(root: pathlib.Path) -> dict[str, Any]:
    """The manifest of a directory; UserError where there is none that this version understands."""
    path = root / MANIFEST
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        begun = (root / ".work").is_dir()
        raise UserError(
            f"no {MANIFEST} in {str(root)!r}: "
            + ("dit prepare has not finished there: give its command again" if begun else "")
            + ("" if begun else "set data.path to what dit prepare wrote (its --out)")
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {str(path)!r} ({error}): prepare the records again"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        form = found.get("format") if isinstance(found, dict) else None
        raise UserError(
            f"{str(path)!r} has format {form!r}; expected {FORMAT}: prepare the records again, or "
            "take the version of this package that made them"
        )
    return found


def check_shards(root: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Raise UserError for shards that are missing, or have another length than the manifest says."""
    with os.scandir(root) as entries:
        there = {entry.name: entry for entry in entries}
    for shard in manifest["shards"]:
        name = shard["name"]
        if name not in there:
            raise UserError(
                f"{str(root)!r} lacks {name!r}, one of {len(manifest['shards'])} shards that its "
                f"{MANIFEST} names: copy it there, or prepare the records again"
            )
        size = there[name].stat().st_size
        if size != shard["bytes"]:
            raise UserError(
                f"{str(root / name)!r} has {size} bytes; the {MANIFEST} says {shard['bytes']}: it is "
                "damaged or of other records: copy it again, or prepare the records again"
            )


def tail(path: str | os.PathLike) -> str:
    """A digest of the last bytes of a shard, which hold its index: another shard has another."""
    with open(path, "rb") as file:
        file.seek(-min(TAIL, os.path.getsize(path)), os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class Shards(Travels):
    """The raw records of one split, at random, of which a few shards are open at a time.

    ``counts``: records of each shard; ``marks``: their ``tail``. Pickled, it is as large as the path.
    """

    root: str
    split: str
    counts: np.ndarray
    marks: np.ndarray  # uint64

    OPEN = 64

    @classmethod
    def of(cls, root: pathlib.Path, manifest: dict[str, Any], split: str) -> Shards:
        """Those that the manifest names."""
        mine = [shard for shard in manifest["shards"] if shard["split"] == split]
        counts = np.array([shard["records"] for shard in mine], np.int64)
        marks = np.array([int(shard["tail"], 16) for shard in mine], np.uint64)
        return cls(str(root), split, counts, marks)

    def __len__(self) -> int:
        return int(self._last[-1]) if len(self.counts) else 0

    @functools.cached_property
    def _last(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def name(self, shard: int) -> str:
        """Of a shard's file."""
        return shard_name(self.split, shard, len(self.counts))

    def place(self, i: int) -> tuple[int, int]:
        """Which shard record ``i`` is in, and which record of that shard it is."""
        shard = int(np.searchsorted(self._last, i, side="right"))
        return shard, int(i - (self._last[shard - 1] if shard else 0))

    def where(self, i: int) -> str:
        """``record 5 of '.../records-train...'``."""
        shard, within = self.place(i)
        return f"record {within} of {os.path.join(self.root, self.name(shard))!r}"

    def __getitem__(self, i: int) -> bytes:
        shard, within = self.place(i)
        return self._reader(shard).read([within])[0]

    @functools.cached_property
    def _reader(self) -> Any:
        return functools.lru_cache(self.OPEN)(self._opened)

    def _opened(self, shard: int) -> Any:
        from array_record.python import array_record_module

        path = os.path.join(self.root, self.name(shard))
        if int(tail(path), 16) != int(self.marks[shard]):
            raise UserError(
                f"{path!r} is not what the {MANIFEST} says: its end differs. Copy it again, or prepare "
                "the records again"
            )
        reader = array_record_module.ArrayRecordReader(
            path, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=2**15
        )
        if reader.num_records() != int(self.counts[shard]):
            raise UserError(
                f"{path!r} has {reader.num_records()} records; expected {self.counts[shard]}"
            )
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return Travels.__getstate__(dataclasses.replace(self))  # without what is open
