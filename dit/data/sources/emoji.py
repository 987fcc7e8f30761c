"""Emoji as pictures with their English names, drawn when they are asked for, at any size.

Glyphs and names are those of ``dit.scenes.emoji``. Glyphs of another width than most are left out, since
the font draws them in several pieces, and so are copies of another's drawing (flags of islands, say).
What is held out is held out with its twins of other skin tones.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Annotated

from dit.data.source import Example, Source, Transform, check_index, digest, generator, identity
from dit.data.transforms import augmentations
from dit.data.travel import Travels
from dit.scenes.emoji import UNITS, base, draw, font, names
from dit.types import Fraction, Range, Seed, UserError

Side = Annotated[int, Range(8, 512)]


def build(
    *,
    size: Side = 64,
    skin_tones: bool = True,
    held_out: Fraction = 0.1,
    flip: bool = False,
    colors: bool = False,
    split_seed: Seed = 0,
) -> Source:
    """Pictures of ``size x size x 3`` uint8 on white, with captions and without labels.

    ``skin_tones``: whether those of a certain skin tone are among them. ``held_out``: the fraction of
    emoji, counted without their tones, that is kept aside. ``flip`` mirrors training pictures at random,
    and ``colors`` changes their colours (``transforms.random_colors``).
    Raises UserError where the packages are not installed, or nothing is left on one side.
    """
    found = distinct(size, skin_tones)
    bases = sorted({base(text) for text, _ in found})
    count = round(held_out * len(bases))
    if not 1 <= count < len(bases):
        raise UserError(
            f"got held_out={held_out} of {len(bases)} emoji, which leaves {count} held out; expected a "
            "fraction that leaves one or more on both sides"
        )
    order = generator(split_seed, "split", 0).permutation(len(bases))
    apart = {bases[i] for i in order[:count]}
    facts = {"size": size, "found": found, "held_out": sorted(apart), "flip": flip, "version": 1}
    name = identity("emoji", **facts, **({"colors": True} if colors else {}))
    transforms = augmentations(flip, colors)
    parts = {
        "train": [each for each in found if base(each[0]) not in apart],
        "held_out": [each for each in found if base(each[0]) in apart],
    }
    train, aside = (
        Emoji(
            tuple(items), size, f"{name}/{part}", transforms=transforms if part == "train" else ()
        )
        for part, items in parts.items()
    )
    return Source(train, aside, (1, size, size, 3), None, name)


@dataclasses.dataclass(frozen=True, eq=False)
class Emoji(Travels):
    """Emoji with their names. See the module."""

    items: tuple[tuple[str, str], ...]
    size: int
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        text, caption = self.items[i]
        return {"x": draw(text, self.size)[None], "caption": caption}


@functools.cache
def distinct(size: int, skin_tones: bool) -> list[tuple[str, str]]:
    """Every emoji with its English name, in the order of code points, and no drawing twice."""
    named = names()
    texts = [t for t in sorted(named) if skin_tones or base(t) == t]
    widths = [font(UNITS).getlength(text) for text in texts]
    (usual, _), *_ = collections.Counter(widths).most_common(1)
    drawn: dict[str, tuple[str, str]] = {}
    for text, width in zip(texts, widths, strict=True):
        if width == usual:
            drawn.setdefault(digest(draw(text, size)), (text, named[text]))
    return list(drawn.values())
