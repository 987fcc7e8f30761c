"""Tiles of the photographs that scikit-learn and scikit-image carry: real pictures, without a download.

Seven photographs in colour (a person, a cat, a palace, a cup, a flower, a motorcycle, a rocket) are cut
into squares. Whole photographs are held out, since tiles of one picture resemble each other. Two of
them come with scikit-learn, the rest with scikit-image (the extra ``photographs``). Both packages are
read as files, and neither is imported.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

import numpy as np

from dit.config import package_files
from dit.data import pictures
from dit.data.source import Example, Source, Transform, check_index, digest, identity
from dit.data.transforms import augmentations
from dit.data.travel import Travels
from dit.types import Range, UserError

PHOTOGRAPHS = {  # their names, and the package and the file
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
MISSING = (
    "data 'photographs' needs the package {}, which is not installed: pip install "
    "'dit-jax[photographs]'"
)
Side = Annotated[int, Range(8, 256)]


def build(
    *,
    size: Side = 64,
    held_out: tuple[str, ...] = ("coffee", "flower"),
    overlap: bool = True,
    flip: bool = False,
    colors: bool = False,
) -> Source:
    """Tiles of ``size x size x 3`` uint8, without labels or captions.

    ``held_out``: the photographs kept aside, whose tiles lie side by side; those of training begin at
    every half tile, or side by side without ``overlap``. ``flip`` mirrors training tiles at random, and
    ``colors`` changes their colours (``transforms.random_colors``).
    Raises UserError where a package is not installed, for unknown names, and where nothing is left to
    train on or held out.
    """
    unknown = sorted(set(held_out) - PHOTOGRAPHS.keys())
    if unknown or not 0 < len(set(held_out)) < len(PHOTOGRAPHS):
        raise UserError(
            f"got held_out={tuple(held_out)}; expected some, and not all, of {', '.join(PHOTOGRAPHS)}"
        )
    names = {
        "train": tuple(name for name in PHOTOGRAPHS if name not in held_out),
        "held_out": tuple(name for name in PHOTOGRAPHS if name in held_out),
    }
    content = digest(*(photograph(name) for name in PHOTOGRAPHS))
    facts = {"size": size, "held_out": names["held_out"], "overlap": overlap, "flip": flip}
    facts |= {"colors": True} if colors else {}
    name = identity("photographs", content=content, version=1, **facts)
    steps = {"train": size // 2 if overlap else size, "held_out": size}
    train, aside = (
        Tiles(
            tuple(place for each in names[part] for place in places(each, size, steps[part])),
            size,
            f"{name}/{part}",
            transforms=augmentations(flip, colors) if part == "train" else (),
        )
        for part in ("train", "held_out")
    )
    return Source(train, aside, (1, size, size, 3), None, name)


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles(Travels):
    """Squares of photographs, each a name with its first row and column. See the module."""

    items: tuple[tuple[str, int, int], ...]
    size: int
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        name, y, x = self.items[i]
        return {"x": photograph(name)[None, y : y + self.size, x : x + self.size]}


def places(name: str, size: int, step: int) -> list[tuple[str, int, int]]:
    """Where the tiles of a photograph begin."""
    height, width, _ = photograph(name).shape
    rows, columns = (range(0, side - size + 1, step) for side in (height, width))
    return [(name, y, x) for y in rows for x in columns]


@functools.cache
def photograph(name: str) -> Any:
    """One of ``PHOTOGRAPHS``, whole, ``h w c`` uint8; do not write to it."""
    package, file = PHOTOGRAPHS[name]
    distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
    path = package_files(package, MISSING.format(distribution)) / file
    with pictures.opened(str(path)) as image:
        found = np.array(pictures.upright(image, 3))
    found.flags.writeable = False
    return found
