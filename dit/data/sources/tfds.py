"""Data sets by TensorFlow Datasets name ("mnist", "imagenet2012", ...), read without TensorFlow.

The records are read at random from ArrayRecord files, so they must have been prepared as such, with
``tfds.builder(name, file_format="array_record").download_and_prepare()``: ``download=True`` does it.
Pixels are made 8 bits without transparency, as those of files are (``dit.data.pictures``). Labels are
whole numbers in ``[0, num_classes)``; text, lists and the -1 of unlabelled splits are refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dit.data import pictures
from dit.data.resize import fill
from dit.data.source import (
    Example,
    Source,
    Transform,
    check_finite,
    check_index,
    identity,
)
from dit.data.transforms import random_flip
from dit.types import Count, UserError, first_line

PIXELS = (np.dtype(np.uint8), np.dtype(np.uint16))
LATENTS = (np.dtype(np.float16), np.dtype(np.float32))


def build(
    *,
    dataset: str,
    data_dir: str | None = None,
    train: str = "train",
    held_out: str = "test",
    image: str = "image",
    label: str | None = "label",
    num_classes: Count | None = None,
    size: Count | None = None,
    flip: bool = False,
    download: bool = False,
) -> Source:
    """Splits ``train`` and ``held_out`` of ``dataset`` ("train[:95%]" and the like are understood).

    ``image`` and ``label`` are names of features; ``label=None`` is unlabelled. ``num_classes``:
    needed for labels that are plain whole numbers. ``size`` crops and resizes; without it the images
    must all have one size. Raises UserError for what is not there, or no image or label.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"no TFDS data set {dataset!r}: {first_line(error)}") from error
    except ImportError as error:  # some features need TensorFlow
        raise UserError(f"cannot read {dataset!r} without a package: {error}") from error
    if download:
        builder.download_and_prepare()
    features = builder.info.features
    for key in (image, label):
        if key is not None and key not in features:
            raise UserError(
                f"{dataset!r} has no feature {key!r}; expected one of {sorted(features)}"
            )
    check_image(features[image], image, size)
    if label is not None:
        num_classes = count_classes(features[label], label, num_classes)
    elif num_classes is not None:
        raise UserError(f"got data.num_classes={num_classes} and data.label=None; expected both")
    try:
        parts = [builder.as_data_source(split=s) for s in (train, held_out)]
    except (ValueError, KeyError, OSError, AssertionError, NotImplementedError) as error:
        known = (
            sorted(builder.info.splits) or "none: set data.download=True to prepare the data set"
        )
        raise UserError(
            f"cannot read {train!r} and {held_out!r} of {dataset!r} (splits: {known}): "
            f"{first_line(error)}"
        ) from error
    name = identity(
        "tfds",
        dataset=builder.info.full_name,
        splits=[[s, len(p)] for s, p in zip((train, held_out), parts, strict=True)],
        features=[image, label],
        size=size,
    )
    transforms = (random_flip,) if flip else ()
    drawn = isinstance(features[image], (tfds.features.Image, tfds.features.Video))
    reader = Reader(image, label, num_classes, size, drawn)
    splits = [
        Records(part, reader, f"{name}/{role}", transforms=t)
        for part, role, t in zip(parts, ("train", "held_out"), (transforms, ()), strict=True)
    ]
    shapes = [split[0]["x"].shape for split in splits]
    if shapes[0] != shapes[1]:
        raise UserError(f"the splits of {dataset!r} differ: got images {shapes[0]} and {shapes[1]}")
    return Source(*splits, shapes[0], num_classes, name)


def check_image(feature: Any, name: str, size: int | None) -> None:
    """Raise UserError unless a feature is images or clips, of one size or to be resized."""
    shape, dtype = feature.shape, feature.np_dtype
    plain = isinstance(shape, tuple) and isinstance(dtype, (type, np.dtype))
    if not plain or len(shape) not in (3, 4) or np.dtype(dtype) not in PIXELS + LATENTS:
        raise UserError(
            f"feature {name!r} is {type(feature).__name__} of shape {shape}; expected images (h, w, c) "
            "or clips (f, h, w, c) of 8 or 16 bits, or floating point latents: set data.image"
        )
    if None in (shape[:-3] + shape[-1:]):
        raise UserError(
            f"feature {name!r} has shape {shape}: its frames or channels vary; expected one number"
        )
    if size is None and None in shape:
        raise UserError(f"feature {name!r} has shape {shape}: its size varies; set data.size")
    if size is not None and np.dtype(dtype) in LATENTS:
        raise UserError(
            f"got data.size={size} for {np.dtype(dtype)} data; expected pixels to resize"
        )


def count_classes(feature: Any, name: str, given: int | None) -> int:
    """The number of classes of a feature; UserError unless it is one whole number per example."""
    whole = (
        isinstance(feature.np_dtype, (type, np.dtype)) and np.dtype(feature.np_dtype).kind in "iub"
    )
    if feature.shape != () or not whole:
        raise UserError(
            f"feature {name!r} is {type(feature).__name__} of shape {feature.shape} and type "
            f"{feature.np_dtype}; expected a whole number, the class: set data.label to another "
            "feature, or to None for unlabelled data"
        )
    known = getattr(feature, "num_classes", None)
    if known is None and (given is None or given < 1):
        raise UserError(
            f"feature {name!r} does not say how many classes there are; got data.num_classes={given}, "
            "expected a positive number"
        )
    if None not in (known, given) and known != given:
        raise UserError(f"got data.num_classes={given}, but feature {name!r} has {known} classes")
    return given if known is None else known


@dataclasses.dataclass(frozen=True)
class Reader:
    """What an example is made of: the features ``image`` and ``label`` of a record.

    ``drawn``: the feature is pictures, so a fourth channel is transparency.
    """

    image: str
    label: str | None
    num_classes: int | None
    size: int | None
    drawn: bool

    def __call__(self, record: dict[str, Any], where: str) -> Example:
        x = np.asarray(record[self.image])
        x = x if x.ndim == 4 else x[None]
        x = pictures.scaled(x) if x.dtype == np.uint16 else x
        if self.size is not None or (self.drawn and x.shape[-1] == 4):
            x = np.stack([self._frame(frame) for frame in x])
        check_finite(x, lambda: where)
        if self.label is None:
            return {"x": x}
        label = int(record[self.label])
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"{where} has label {label}; expected 0 to {self.num_classes - 1}. Splits without "
                "labels have -1: take another split, or set data.label=None"
            )
        return {"x": x, "label": label}

    def _frame(self, frame: np.ndarray) -> np.ndarray:
        from PIL import Image

        channels = frame.shape[-1]
        image = Image.fromarray(frame[..., 0] if channels == 1 else frame)
        image = pictures.flat(image, 1 if channels == 1 else 3)
        if self.size is not None:
            return fill(image, self.size, self.size)
        return np.asarray(image).reshape(*frame.shape[:2], -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A random-access TFDS split; images ``(h, w, c)`` and videos ``(f, h, w, c)`` alike."""

    records: Any
    reader: Reader
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        where = f"example {i} of {self.fingerprint}"
        try:
            record = self.records[i]
        except Exception as error:  # of a reader of files that may be damaged
            raise UserError(f"cannot read {where}: {first_line(error)}") from error
        return self.reader(record, where)
