"""Any folder of images: sub-folders are classes, in alphabetical order; none means unlabelled.

Files are found in any depth, in an order that does not depend on the file system. Each is read when it
is asked for, turned upright, cropped to its middle square and resized (``dit.data.resize``).
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from dit.data.resize import square
from dit.data.source import Example, Source, Transform, check_index, identity, split_rows
from dit.data.transforms import random_flip
from dit.types import Count, Fraction, Seed, UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MODES = {1: "L", 3: "RGB"}


def build(
    *,
    path: str,
    size: Count,
    channels: Count = 3,
    held_out: Fraction = 0.05,
    flip: bool = False,
    split_seed: Seed = 0,
) -> Source:
    """Images under ``path`` as ``size x size``; a fraction ``held_out`` of each class is kept aside.

    ``flip`` mirrors training images at random. Raises UserError for a folder without images, with
    images both beside and inside sub-folders, or, when it is read, for a file that is no image.
    """
    root = pathlib.Path(path).expanduser()
    if size < 1 or channels not in MODES:
        raise UserError(
            f"got size={size}, channels={channels}; expected size >= 1 and 1 or 3 channels"
        )
    if not root.is_dir():
        raise UserError(f"no folder {str(root)!r}: set data.path to a folder of images")
    files = sorted(
        p.relative_to(root)
        for p in root.rglob("*")
        if p.suffix.lower() in SUFFIXES
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(root).parts)
    )
    if not files:
        raise UserError(
            f"no images in {str(root)!r}; expected files in {', '.join(sorted(SUFFIXES))}"
        )
    classes = sorted({p.parts[0] for p in files if len(p.parts) > 1})
    loose = [p for p in files if len(p.parts) == 1]
    if classes and loose:
        raise UserError(
            f"{str(root)!r} holds images ({str(loose[0])!r}, ...) beside folders of images "
            f"({classes[0]!r}, ...): move them into a folder, or give a folder without folders"
        )
    label = np.array([classes.index(p.parts[0]) if classes else 0 for p in files], np.int32)
    name = identity(
        "folder",
        files=[(p.as_posix(), (root / p).stat().st_size) for p in files],
        size=size,
        channels=channels,
        held_out=held_out,
        split_seed=split_seed,
    )
    kept, aside = split_rows(label, held_out, split_seed)

    def split(rows: np.ndarray, part: str, transforms: tuple[Transform, ...] = ()) -> Files:
        paths = tuple(str(root / files[i]) for i in rows)
        return Files(paths, label[rows], size, channels, f"{name}/{part}", transforms=transforms)

    return Source(
        train=split(kept, "train", (random_flip,) if flip else ()),
        held_out=split(aside, "held_out"),
        shape=(1, size, size, channels),
        num_classes=len(classes) or None,
        fingerprint=name,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files and their labels, read on demand."""

    paths: tuple[str, ...]
    label: np.ndarray
    size: int
    channels: int
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        return {"x": self._read(self.paths[i])[None], "label": int(self.label[i])}

    def _read(self, path: str) -> np.ndarray:
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as image:
                return square(
                    ImageOps.exif_transpose(image).convert(MODES[self.channels]), self.size
                )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"cannot read the image {path!r} ({error}): repair it or take it out of the folder"
            ) from error
