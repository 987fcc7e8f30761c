"""Captioned clips of moving scenes, as many as are asked for, of any size, length and frame rate.

Clip ``i`` is a pure function of ``(seed, i)``: a scene of ``dit.scenes.moving`` (an actor that drifts
and bounces, falls, is passed by the camera or hidden by a post; two that meet), filmed with what the
sentence leaves open at random; and ``caption``, a sentence that describes it. Actors are coloured
shapes, handwritten digits in a colour, or emoji. No two clips are alike, so there are no epochs.
``split.truth(i)`` is the film with its tracks and masks.

A sixth of the pairs of a colour and a shape or digit, and of an emoji and a way to go, never occur in
training (``Actor.unseen``). Of the held-out clips, which come from a stream of their own, those with an
odd index show nothing but such pairs, and the others none; their digits are scans that training never
shows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Literal

import numpy as np

from dit.data.source import STREAM_LENGTH, Example, Source, Stream, identity
from dit.scenes.draw import UNITS
from dit.scenes.grammar import COLOURS, SHAPES
from dit.scenes.moving.film import Film, film
from dit.scenes.moving.grammar import (
    DIGITS,
    DIRECTIONS,
    KINDS,
    PANS,
    SPEEDS,
    TEXTURES,
    Actor,
    Scene,
)
from dit.scenes.moving.grammar import wordings as sentences
from dit.scenes.moving.motion import RADII
from dit.scenes.moving.sprites import EMOJI, emoji_sprite
from dit.types import Count, Positive, Seed, UserError

WAYS_OF = {  # to go, in a scene of a kind
    "drift": tuple(DIRECTIONS),
    "fall": ("falls",),
    "pan": ("rests", "falls", "up", "down"),
    "hide": ("left", "right"),
    "meet": ("left", "right"),
}
LARGEST = 10.0  # radius of an actor, in units: most of the picture
Kind = Literal["drift", "fall", "pan", "hide", "meet"]
Looks = Literal["shape", "digit", "emoji"]


def build(
    *,
    frames: Count = 9,
    size: Count | tuple[Count, Count] = 32,
    fps: Positive = 8.0,
    kinds: tuple[Kind, ...] = KINDS,
    textures: bool = True,
    radii: tuple[Positive, Positive] = RADII,
    actors: tuple[Looks, ...] = ("shape",),
    emoji: tuple[str, ...] = EMOJI,
    seed: Seed = 0,
    held_out: Count = 2000,
) -> Source:
    """Clips of ``frames x size x size x 3``, or (height, width), uint8, with captions, no labels.

    ``kinds``: of scene, each as often as it is listed. ``textures``: whether some shapes are striped or
    dotted. ``radii``: the least and the largest of an actor, in 32nd parts of the shorter side.
    ``actors``: what they look like, each as often as it is listed; ``emoji``: their English names.
    Raises UserError below 16 pixels, for clips of one frame, and for actors that have no room to move
    or cannot do what is asked.
    """
    canvas = (size, size) if isinstance(size, int) else size
    if min(canvas) < UNITS // 2 or frames < 2 or not kinds:
        raise UserError(
            f"got size={size}, frames={frames}, kinds={kinds}; expected sides of {UNITS // 2} pixels or "
            f"more, two frames or more, and one kind or more of {', '.join(KINDS)}"
        )
    if not radii[0] <= radii[1] <= LARGEST:
        raise UserError(f"got radii={radii}; expected a least and a largest one up to {LARGEST}")
    facts = {"frames": frames, "size": canvas, "fps": fps, "kinds": kinds, "textures": textures}
    facts |= {"radii": radii} if radii != RADII else {}
    facts |= {"actors": actors} if actors != ("shape",) else {}
    if "emoji" in actors:
        _check_emoji(actors, kinds, emoji)
        facts |= {"emoji": emoji}
    name = identity("world", seed=seed, held_out=held_out, version=1, **facts)
    train, aside = (
        World(
            frames=frames,
            size=canvas,
            fps=fps,
            kinds=kinds,
            textures=textures,
            radii=radii,
            actors=actors,
            emoji=emoji,
            apart=part == "held_out",
            seed=seed,
            length=length,
            fingerprint=f"{name}/{part}",
        )
        for part, length in (("train", STREAM_LENGTH), ("held_out", held_out))
    )
    return Source(train, aside, (frames, *canvas, 3), None, name, streaming=True, fps=fps)


def _check_emoji(actors: tuple[str, ...], kinds: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Every emoji can be drawn, and there are some for every kind of scene; or UserError."""
    for name in names:
        emoji_sprite(name, UNITS)
    if "meet" in kinds and set(actors) == {"emoji"}:
        raise UserError(
            f"got kinds={kinds} of emoji alone, which cannot be told apart where they meet; expected "
            "kinds without meet, or actors such as shape,emoji"
        )
    for kind in set(kinds) - {"meet"}:
        if not (_emoji(kind, names, False) and _emoji(kind, names, True)):
            held = "all" if _emoji(kind, names, True) else "none"
            raise UserError(
                f"got emoji={names}, of which {held} are held out of training in scenes of kind {kind}; "
                "expected some that are and some that are not: name more of them, of other numbers of "
                "letters, which decide it"
            )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class World(Stream):
    """See the module. ``apart``: whether those with an odd index show pairs that training never does."""

    frames: int
    size: tuple[int, int]
    fps: float
    kinds: tuple[str, ...]
    textures: bool
    radii: tuple[float, float]
    actors: tuple[str, ...]
    emoji: tuple[str, ...]
    apart: bool

    def make(self, rng: np.random.Generator, i: int) -> Example:
        made, caption = self._filmed(rng, i)
        return {"x": made.clip, "caption": caption}

    def truth(self, i: int) -> Film:
        """Clip ``i`` with what happens in it."""
        return self._filmed(self.random(i), i)[0]

    def _filmed(self, rng: np.random.Generator, i: int) -> tuple[Film, str]:
        of_unseen = self.apart and i % 2 == 1
        scene = random_scene(rng, self.kinds, self.textures, of_unseen, self.actors, self.emoji)
        said = sentences(scene)
        caption = said[int(rng.integers(len(said)))]
        made = film(scene, rng, self.frames, self.size, self.fps, self.radii, self.apart)
        return made, caption


def random_scene(
    rng: np.random.Generator,
    kinds: tuple[str, ...],
    textures: bool,
    of_unseen: bool,
    actors: tuple[str, ...] = ("shape",),
    emoji: tuple[str, ...] = (),
) -> Scene:
    """A scene of one of the ``kinds`` with one of the ``actors``: unseen ones, or none of them."""

    def one_of(items):
        return items[int(rng.integers(len(items)))]

    kind = one_of(kinds)
    able = [looks for looks in actors if looks != "emoji" or kind != "meet"]
    looks = one_of(able) if len(able) > 1 else able[0]
    if looks == "emoji":
        name, way = one_of(_emoji(kind, emoji, of_unseen))
        first = Actor(None, name, None, **_does(way, one_of((None, *SPEEDS))))
        return Scene((first,), one_of(PANS) if kind == "pan" else None, kind == "hide")
    pairs = _pairs(looks, of_unseen)
    textured = textures and looks == "shape"
    texture = one_of((None, *TEXTURES)) if textured else None
    first = Actor(*one_of(pairs), texture)
    speed = one_of((None, *SPEEDS))
    if kind == "fall":
        return Scene((dataclasses.replace(first, action="falls"),))
    way = one_of(WAYS_OF[kind])
    first = dataclasses.replace(first, **_does(way, speed))
    if kind == "pan":
        return Scene((first,), one_of(PANS))
    if kind != "meet":
        return Scene((first,), post=kind == "hide")
    colour, shape = one_of([pair for pair in pairs if pair[0] != first.colour])
    back = {"left": "right", "right": "left"}[first.direction]
    second = Actor(colour, shape, one_of((None, *TEXTURES)) if textured else None, "moves", back)
    return Scene((first, second))


def _does(way: str, speed: str | None) -> dict[str, str | None]:
    """The fields of an ``Actor`` that moves in the direction ``way``, or that ``falls`` or ``rests``."""
    moves = {"action": "moves", "direction": way, "speed": speed}
    return moves if way in DIRECTIONS else {"action": way}


@functools.cache
def _pairs(looks: str, of_unseen: bool) -> tuple[tuple[str, str], ...]:
    of_all = itertools.product(COLOURS, DIGITS if looks == "digit" else SHAPES)
    return tuple(pair for pair in of_all if Actor(*pair).unseen == of_unseen)


@functools.cache
def _emoji(kind: str, names: tuple[str, ...], of_unseen: bool) -> tuple[tuple[str, str], ...]:
    """Emoji with ways to go that a scene of a kind has."""
    of_all = itertools.product(names, WAYS_OF[kind])
    return tuple(
        (name, way)
        for name, way in of_all
        if Actor(None, name, **_does(way, None)).unseen == of_unseen
    )
