"""Captioned pictures of coloured shapes and short words, as many as are asked for, of any size.

Picture ``i`` is a pure function of ``(seed, i)``: a scene of ``dit.scenes`` (one object, several of a
kind, two and how they stand to each other, a word), drawn with what the sentence leaves open at random;
and ``caption``, a sentence that describes it. No two are alike, so there are no epochs.

A sixth of the pairs of a colour and a shape, or a word, never occur in training (``grammar.unseen``). Of
the held-out pictures, which come from a stream of their own, those with an odd index show nothing but
such pairs, and the others none: ``parse(caption).unseen`` tells them apart.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from dit.data.source import STREAM_LENGTH, Example, Source, Stream, identity
from dit.scenes.draw import UNITS, draw
from dit.scenes.grammar import (
    COLOURS,
    KINDS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SIZES,
    WORDS,
    Scene,
    Thing,
    unseen,
    wordings,
)
from dit.types import Count, Seed, UserError

Kind = Literal["one", "count", "relation", "word"]


def build(
    *,
    size: Count | tuple[Count, Count] = 32,
    kinds: tuple[Kind, ...] = KINDS,
    seed: Seed = 0,
    held_out: Count = 2000,
) -> Source:
    """Pictures of ``size x size x 3``, or (height, width), uint8, with captions and without labels.

    ``kinds``: of scene, each as often as it is listed. Raises UserError below 32 pixels.
    """
    canvas = (size, size) if isinstance(size, int) else size
    if min(canvas) < UNITS or not kinds:
        raise UserError(
            f"got size={size}, kinds={kinds}; expected sides of {UNITS} pixels or more, and one kind or "
            f"more of {', '.join(KINDS)}"
        )
    name = identity(
        "shapes_text", size=canvas, kinds=kinds, seed=seed, held_out=held_out, version=1
    )
    train, aside = (
        ShapesText(
            size=canvas,
            kinds=kinds,
            apart=part == "held_out",
            seed=seed,
            length=length,
            fingerprint=f"{name}/{part}",
        )
        for part, length in (("train", STREAM_LENGTH), ("held_out", held_out))
    )
    return Source(train, aside, (1, *canvas, 3), None, name, streaming=True)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ShapesText(Stream):
    """See the module. ``apart``: whether those with an odd index show pairs that training never does."""

    size: tuple[int, int]
    kinds: tuple[str, ...]
    apart: bool

    def make(self, rng: np.random.Generator, i: int) -> Example:
        scene = random_scene(rng, self.kinds, self.apart and i % 2 == 1)
        said = wordings(scene)
        caption = said[int(rng.integers(len(said)))]
        return {"x": draw(scene, rng, self.size)[None], "caption": caption}


def random_scene(rng: np.random.Generator, kinds: tuple[str, ...], of_unseen: bool) -> Scene:
    """A scene of one of the ``kinds``, of nothing but unseen pairs, or of none."""
    kind = kinds[int(rng.integers(len(kinds)))]
    pairs = _pairs(kind == "word", of_unseen)
    colour, shape = pairs[int(rng.integers(len(pairs)))]
    if kind == "word":
        return Scene((Thing(colour, shape),))
    if kind == "count":
        return Scene((Thing(colour, shape),) * (2 + int(rng.integers(len(NUMBERS)))))
    first = Thing(colour, shape, _size(rng))
    if kind == "one":
        return Scene((first,))
    others = [pair for pair in pairs if pair != first.pair]
    second = Thing(*others[int(rng.integers(len(others)))], _size(rng))
    return Scene((first, second), list(RELATIONS)[int(rng.integers(len(RELATIONS)))])


def _size(rng: np.random.Generator) -> str | None:
    return (None, *SIZES)[int(rng.integers(1 + len(SIZES)))]


@functools.cache
def _pairs(words: bool, of_unseen: bool) -> tuple[tuple[str, str], ...]:
    all_pairs = ((colour, shape) for colour in COLOURS for shape in (WORDS if words else SHAPES))
    return tuple(pair for pair in all_pairs if unseen(*pair) == of_unseen)
