"""Any folder of images: sub-folders are classes, in alphabetical order; none means unlabelled.

Files are found in any depth, in an order that does not depend on the file system; links to files and
folders are followed, and names that begin with a dot are skipped. Each is read when it is asked for,
made 8 bits without transparency and turned upright (``dit.data.pictures``), resized and cropped to its
middle (``dit.data.resize``): to a square, or to the one of several sizes that has the nearest aspect
ratio (``dit.data.aspects``). A warning lists what is skipped.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from dit.data import aspects, pictures
from dit.data.source import (
    Example,
    Source,
    Transform,
    check_index,
    identity,
    label_of,
    split_rows,
)
from dit.data.transforms import random_flip
from dit.data.travel import Names, Travels
from dit.types import Count, Fraction, Seed, UserError

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
log = logging.getLogger(__name__)


def build(
    *,
    path: str,
    size: Count | tuple[tuple[Count, Count], ...],
    channels: Count = 3,
    held_out: Fraction = 0.05,
    flip: bool = False,
    split_seed: Seed = 0,
) -> Source:
    """Images under ``path`` as ``size x size``; a fraction ``held_out`` of each class is kept aside.

    ``size`` may also be several (height, width), each of which has a bucket. ``flip`` mirrors training
    images at random. Raises UserError for a folder without images, with images both beside
    and inside sub-folders, for a size that no image is nearest to, or, when it is read, for a file that
    is no image.
    """
    root = pathlib.Path(path).expanduser()
    sizes = ((size, size),) if isinstance(size, int) else size
    ratios = {height / width for height, width in sizes}
    if channels not in pictures.MODES or not sizes or len(ratios) < len(sizes):
        raise UserError(
            f"got size={size}, channels={channels}; expected a size, or several of different aspect "
            "ratios, and 1 or 3 channels"
        )
    if not root.is_dir():
        raise UserError(f"no folder {str(root)!r}: set data.path to a folder of images")
    files, others = [], []
    for found, entry in walk(root):
        if os.path.splitext(found)[1].lower() in pictures.suffixes():
            files.append((found, entry.stat().st_size))
        else:
            others.append(found)
    tell_skipped(root, others)
    if not files:
        raise UserError(
            f"no images in {str(root)!r}; expected files in {', '.join(sorted(pictures.suffixes()))}"
        )
    folders = [name.partition("/")[0] if "/" in name else None for name, _ in files]
    classes = sorted({folder for folder in folders if folder is not None})
    if classes and None in folders:
        loose = files[folders.index(None)][0]
        raise UserError(
            f"{str(root)!r} holds images ({loose!r}, ...) beside folders of images "
            f"({classes[0]!r}, ...): move them into a folder, or give a folder without folders"
        )
    tell_classes(root, classes)
    numbers = {folder: i for i, folder in enumerate(classes)}
    strata = np.array([numbers.get(folder, 0) for folder in folders], np.int32)
    name = identity(
        "folder",
        files=files,
        size=size,
        channels=channels,
        held_out=held_out,
        split_seed=split_seed,
    )
    buckets = aspects.nearest(root, files, sizes)
    check_filled(root, sizes, buckets)
    kept, aside = split_rows(strata * len(sizes) + buckets, held_out, split_seed)
    names, label = Names.of([name for name, _ in files]), strata if classes else None

    def split(rows: np.ndarray, part: str, transforms: tuple[Transform, ...] = ()) -> Files:
        rows = rows[np.argsort(buckets[rows], kind="stable")]  # one bucket after the other
        counts = tuple(np.bincount(buckets[rows], minlength=len(sizes)).tolist())
        place = (str(root), names, label, rows, sizes, counts)
        return Files(*place, channels, f"{name}/{part}", transforms=transforms)

    return Source(
        train=split(kept, "train", (random_flip,) if flip else ()),
        held_out=split(aside, "held_out"),
        shape=(1, *sizes[0], channels),
        num_classes=len(classes) or None,
        fingerprint=name,
        shapes=tuple((1, *size, channels) for size in sizes),
    )


def check_filled(root: pathlib.Path, sizes: Sequence[aspects.Size], buckets: np.ndarray) -> None:
    """UserError for sizes that no picture has the aspect ratio of: nothing would be trained there."""
    counts = np.bincount(buckets, minlength=len(sizes))
    pairs = list(zip(sizes, counts.tolist(), strict=True))
    if lacking := [f"{h}x{w}" for (h, w), count in pairs if not count]:
        filled = ", ".join(f"{h}x{w}: {count}" for (h, w), count in pairs if count)
        raise UserError(
            f"no picture in {str(root)!r} is nearest to {', '.join(lacking)} in its aspect ratio "
            f"({filled}): leave it out of data.size"
        )


def walk(root: pathlib.Path) -> Iterator[tuple[str, os.DirEntry]]:
    """All files below ``root`` as ``(a/b/c, entry)``, in order of their names; each folder read once.

    A link that leads back to a folder it lies in, or to nothing, is skipped with a warning.
    """

    def below(folder: str, prefix: str, above: frozenset[tuple[int, int]]):
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                status = entry.stat()
                here = (status.st_dev, status.st_ino)
                if here in above:
                    log.warning("%r leads back to a folder it lies in: not read", entry.path)
                else:
                    yield from below(entry.path, f"{name}/", above | {here})
            elif entry.is_file():
                yield name, entry
            elif entry.is_symlink():
                log.warning("%r is a link to nothing: not read", entry.path)

    try:
        status = os.stat(root)
        yield from below(str(root), "", frozenset([(status.st_dev, status.st_ino)]))
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
        raise UserError(f"cannot list the folder of images: {error}") from error


def tell_skipped(root: pathlib.Path, names: list[str]) -> None:
    """Warn of files whose suffix is not that of a picture: how many there are of each suffix."""
    if names:
        kinds = collections.Counter(os.path.splitext(name)[1].lower() for name in names)
        listed = ", ".join(f"{n} {kind!r}" for kind, n in kinds.most_common(10))
        log.warning(
            "%d files in %r are not read, by their suffix: %s%s (for example %r)",
            len(names),
            str(root),
            listed,
            ", ..." if len(kinds) > 10 else "",
            names[0],
        )


def tell_classes(root: pathlib.Path, classes: list[str]) -> None:
    """Warn of folders that look like splits rather than classes, and of folders without images."""
    if classes and {folder.lower() for folder in classes} <= SPLITS:
        log.warning(
            "the folders of %r are called %s: they are read as %d classes of one set. If they are "
            "splits of it, set data.path to the one to train on; data.held_out of it is kept aside",
            str(root),
            ", ".join(map(repr, classes)),
            len(classes),
        )
    with os.scandir(root) as entries:
        folders = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    if empty := sorted(folders - set(classes)):
        log.warning(
            "%d folders in %r hold no images, and are no classes: %s",
            len(empty),
            str(root),
            ", ".join(map(repr, empty[:10])) + (", ..." if len(empty) > 10 else ""),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Files(Travels):
    """The image files of ``rows`` of ``names`` and their labels, read on demand."""

    root: str
    names: Names
    label: np.ndarray | None  # of all names
    rows: np.ndarray  # sorted by bucket
    sizes: tuple[aspects.Size, ...]
    bucket_sizes: tuple[int, ...]
    channels: int
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        row = int(self.rows[i])
        path = os.path.join(self.root, self.names[row])
        bucket = bisect.bisect_right(list(itertools.accumulate(self.bucket_sizes)), i)
        x = pictures.read(path, *self.sizes[bucket], self.channels)
        return {"x": x[None], **label_of(self.label, row)}
