"""Data sets by TensorFlow Datasets name ("mnist", "imagenet2012", ...), read without TensorFlow.

The records are read at random from ArrayRecord files, so they must have been prepared as such, with
``tfds.builder(name, file_format="array_record").download_and_prepare()``: ``download=True`` does it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dit.data.resize import square
from dit.data.source import Example, Source, Transform, check_index, identity
from dit.data.transforms import random_flip
from dit.types import Count, UserError


def build(
    *,
    dataset: str,
    data_dir: str | None = None,
    train: str = "train",
    held_out: str = "test",
    image: str = "image",
    label: str | None = "label",
    size: Count | None = None,
    flip: bool = False,
    download: bool = False,
) -> Source:
    """Splits ``train`` and ``held_out`` of ``dataset`` ("train[:95%]" and the like are understood).

    ``image`` and ``label`` are names of features; ``label=None`` is unlabelled. ``size`` crops and
    resizes; without it the images must all have one size. Raises UserError for what is not there.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"no TFDS data set {dataset!r}: {_first_line(error)}") from error
    if download:
        builder.download_and_prepare()
    features = builder.info.features
    for key in (image, label):
        if key is not None and key not in features:
            raise UserError(
                f"{dataset!r} has no feature {key!r}; expected one of {sorted(features)}"
            )
    try:
        parts = [builder.as_data_source(split=s) for s in (train, held_out)]
    except (ValueError, KeyError, OSError, AssertionError, NotImplementedError) as error:
        known = (
            sorted(builder.info.splits) or "none: set data.download=True to prepare the data set"
        )
        raise UserError(
            f"cannot read {train!r} and {held_out!r} of {dataset!r} (splits: {known}): "
            f"{_first_line(error)}"
        ) from error
    name = identity(
        "tfds",
        dataset=builder.info.full_name,
        splits=[[s, len(p)] for s, p in zip((train, held_out), parts, strict=True)],
        features=[image, label],
        size=size,
    )
    transforms = (random_flip,) if flip else ()
    splits = [
        Records(part, image, label, size, f"{name}/{role}", transforms=t)
        for part, role, t in zip(parts, ("train", "held_out"), (transforms, ()), strict=True)
    ]
    shape = splits[0][0]["x"].shape
    if size is None and None in (features[image].shape or (None,)):
        raise UserError(f"the images of {dataset!r} vary in size: set data.size")
    return Source(
        train=splits[0],
        held_out=splits[1],
        shape=shape,
        num_classes=None if label is None else features[label].num_classes,
        fingerprint=name,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A random-access TFDS split; images ``(h, w, c)`` and videos ``(f, h, w, c)`` alike."""

    records: Any
    image: str
    label: str | None
    size: int | None
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        record = self.records[i]
        x = np.asarray(record[self.image])
        frames = x if x.ndim == 4 else x[None]
        if self.size is not None:
            frames = np.stack([self._resized(frame) for frame in frames])
        return {"x": frames, "label": 0 if self.label is None else int(record[self.label])}

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        from PIL import Image

        return square(Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame), self.size)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
