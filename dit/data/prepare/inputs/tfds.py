"""A TFDS data set by name, read without TensorFlow: ``tfds:imagenet2012,held_out=validation``.

What ``dit.data.sources.tfds`` says of such data sets holds here too. Its splits stay splits: ``train``
and ``held_out``; without a ``held_out``, some of ``train`` are held out as they are of other inputs. The
bytes of pictures are taken as they are stored, so that ``data.pictures`` turns them into 8 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from dit.data.prepare import Broken, Item, Part
from dit.data.prepare.said import label_of
from dit.data.sources.tfds import LATENTS, check_image, count_classes
from dit.types import UserError, first_line

ITEMS = 256  # in a part
USUAL = "caption", "captions", "text"


@dataclasses.dataclass(frozen=True)
class Examples:
    """``what`` of a part: (split, first, end). ``columns``: what is read, and the feature it is in."""

    open: Any  # split -> its records
    columns: dict[str, str]
    parts: list[Part] = dataclasses.field(repr=False)
    facts: dict[str, Any]
    classes: tuple[str, ...] | None
    roles: dict[str, bool | None]  # split -> held out

    def read(self, what: tuple[str, int, int]) -> Iterator[Item | Broken]:
        split, first, end = what
        records = self.open(split)
        for i in range(first, end):
            name = f"{split}/{i}"
            try:
                record = records[i]
            except Exception as error:  # of a reader of files that may be damaged
                yield Broken(name, f"it cannot be read: {first_line(error)}")
                continue
            yield self._item(name, record, self.roles[split])

    def _item(self, name: str, record: dict[str, Any], held_out: bool | None) -> Item | Broken:
        found = {what: record[feature] for what, feature in self.columns.items()}
        picture = found["image"]
        try:
            label = None if "label" not in found else label_of(int(found["label"]))
        except ValueError as error:
            return Broken(name, str(error))
        texts = np.atleast_1d(np.asarray(found.get("caption", ()), object))
        try:
            captions = tuple(t.decode() if isinstance(t, bytes) else str(t) for t in texts)
        except UnicodeDecodeError as error:
            return Broken(name, f"its caption is not UTF-8: {error.reason} at byte {error.start}")
        picture = picture if isinstance(picture, bytes) else np.asarray(picture)
        return Item(name, picture, captions, label, held_out, weight=1)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "parts": []}


@dataclasses.dataclass(frozen=True)
class Opener:
    """Opens a split of a data set, in any process."""

    dataset: str
    data_dir: str | None
    image: str
    drawn: bool

    def __call__(self, split: str) -> Any:
        import tensorflow_datasets as tfds

        builder = tfds.builder(self.dataset, data_dir=self.data_dir, file_format="array_record")
        skip = {self.image: tfds.decode.SkipDecoding()} if self.drawn else None
        return builder.as_data_source(split=split, decoders=skip)


def build(
    *,
    path: str,
    data_dir: str | None = None,
    train: str = "train",
    held_out: str | None = None,
    image: str = "image",
    label: str | None = "label",
    caption: str | None = None,
    num_classes: int | None = None,
    download: bool = False,
) -> Examples:
    """The data set named ``path``. ``label``: read if it is there. UserError for what cannot be read."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(path, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"no TFDS data set {path!r}: {first_line(error)}") from error
    except ImportError as error:  # some features need TensorFlow
        raise UserError(f"cannot read {path!r} without a package: {error}") from error
    if download:
        builder.download_and_prepare()
    features = builder.info.features
    columns = {"image": image}
    for what, feature, usual in (("label", label, ("label",)), ("caption", caption, USUAL)):
        if feature is not None and (feature in features or feature not in usual):
            columns[what] = feature
        elif what == "caption" and (known := [name for name in USUAL if name in features]):
            columns[what] = known[0]
    for feature in columns.values():
        if feature not in features:
            raise UserError(f"{path!r} has no feature {feature!r}; expected {sorted(features)}")
    if (kind := getattr(features[image], "np_dtype", None)) in LATENTS:
        raise UserError(
            f"feature {image!r} of {path!r} is {np.dtype(kind)}; expected pictures of 8 or 16 bits"
        )
    check_image(features[image], image, 1)
    if len(features[image].shape) != 3:
        raise UserError(f"feature {image!r} of {path!r} is clips; expected pictures (h, w, c)")
    classes = None
    if "label" in columns:
        feature = features[columns["label"]]
        names = getattr(feature, "names", None)
        count = count_classes(feature, columns["label"], num_classes)
        classes = tuple(names or map(str, range(count)))
    open_split = Opener(path, data_dir, image, isinstance(features[image], tfds.features.Image))
    roles = {train: None} if held_out is None else {train: False, held_out: True}
    try:
        sizes = {split: len(open_split(split)) for split in roles}
    except (ValueError, KeyError, OSError, AssertionError, NotImplementedError) as error:
        known = sorted(builder.info.splits) or "none: give --source=tfds:NAME,download=true"
        raise UserError(
            f"cannot read {' and '.join(roles)} of {path!r} (splits: {known}): {first_line(error)}"
        ) from error
    parts = [
        Part((split, i, min(i + ITEMS, size)), min(ITEMS, size - i))
        for split, size in sizes.items()
        for i in range(0, size, ITEMS)
    ]
    facts = {"dataset": builder.info.full_name, "splits": sizes, "features": columns}
    return Examples(open_split, columns, parts, facts, classes, roles)
