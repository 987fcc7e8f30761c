"""Captioned clips of moving scenes, as many as are asked for, of any size, length and frame rate.

Clip ``i`` is a pure function of ``(seed, i)``: a scene of ``dit.scenes.moving`` (an actor that drifts
and bounces, falls, is passed by the camera or hidden by a post; two that meet), filmed with what the
sentence leaves open at random; and ``caption``, a sentence that describes it. No two are alike, so there
are no epochs. ``split.truth(i)`` is the film with its tracks and masks.

A sixth of the pairs of a colour and a shape never occur in training (``scenes.grammar.unseen``). Of the
held-out clips, which come from a stream of their own, those with an odd index show nothing but such
pairs, and the others none.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from dit.data.source import STREAM_LENGTH, Example, Source, Stream, identity
from dit.scenes.draw import UNITS
from dit.scenes.grammar import COLOURS, SHAPES, unseen
from dit.scenes.moving.film import Film, film
from dit.scenes.moving.grammar import DIRECTIONS, KINDS, PANS, SPEEDS, TEXTURES, Actor, Scene
from dit.scenes.moving.grammar import wordings as sentences
from dit.scenes.moving.motion import RADII
from dit.types import Count, Positive, Seed, UserError

LARGEST = 10.0  # radius of an actor, in units: most of the picture
Kind = Literal["drift", "fall", "pan", "hide", "meet"]


def build(
    *,
    frames: Count = 9,
    size: Count | tuple[Count, Count] = 32,
    fps: Positive = 8.0,
    kinds: tuple[Kind, ...] = KINDS,
    textures: bool = True,
    radii: tuple[Positive, Positive] = RADII,
    seed: Seed = 0,
    held_out: Count = 2000,
) -> Source:
    """Clips of ``frames x size x size x 3``, or (height, width), uint8, with captions, no labels.

    ``kinds``: of scene, each as often as it is listed. ``textures``: whether some actors are striped or
    dotted. ``radii``: the least and the largest of an actor, in 32nd parts of the shorter side. Raises
    UserError below 16 pixels, for clips of one frame, and for actors that have no room to move.
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
    name = identity("world", seed=seed, held_out=held_out, version=1, **facts)
    train, aside = (
        World(
            frames=frames,
            size=canvas,
            fps=fps,
            kinds=kinds,
            textures=textures,
            radii=radii,
            apart=part == "held_out",
            seed=seed,
            length=length,
            fingerprint=f"{name}/{part}",
        )
        for part, length in (("train", STREAM_LENGTH), ("held_out", held_out))
    )
    return Source(train, aside, (frames, *canvas, 3), None, name, streaming=True, fps=fps)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class World(Stream):
    """See the module. ``apart``: whether those with an odd index show pairs that training never does."""

    frames: int
    size: tuple[int, int]
    fps: float
    kinds: tuple[str, ...]
    textures: bool
    radii: tuple[float, float]
    apart: bool

    def make(self, rng: np.random.Generator, i: int) -> Example:
        made, caption = self._filmed(rng, i)
        return {"x": made.clip, "caption": caption}

    def truth(self, i: int) -> Film:
        """Clip ``i`` with what happens in it."""
        return self._filmed(self.random(i), i)[0]

    def _filmed(self, rng: np.random.Generator, i: int) -> tuple[Film, str]:
        scene = random_scene(rng, self.kinds, self.textures, self.apart and i % 2 == 1)
        said = sentences(scene)
        caption = said[int(rng.integers(len(said)))]
        made = film(scene, rng, self.frames, self.size, self.fps, self.radii)
        return made, caption


def random_scene(
    rng: np.random.Generator, kinds: tuple[str, ...], textures: bool, of_unseen: bool
) -> Scene:
    """A scene of one of the ``kinds``, of nothing but unseen pairs, or of none."""

    def one_of(items):
        return items[int(rng.integers(len(items)))]

    kind = one_of(kinds)
    pairs = _pairs(of_unseen)
    texture = one_of((None, *TEXTURES)) if textures else None
    first = Actor(*one_of(pairs), texture)
    speed = one_of((None, *SPEEDS))
    if kind == "fall":
        return Scene((dataclasses.replace(first, action="falls"),))
    if kind == "pan":
        action = one_of(("rests", "falls", "up", "down"))
        moves = {"action": "moves", "direction": action, "speed": speed}
        does = {"action": action} if action in ("rests", "falls") else moves
        return Scene((dataclasses.replace(first, **does),), one_of(PANS))
    sides = ("left", "right") if kind in ("hide", "meet") else tuple(DIRECTIONS)
    first = dataclasses.replace(first, direction=one_of(sides), speed=speed)
    if kind != "meet":
        return Scene((first,), post=kind == "hide")
    colour, shape = one_of([pair for pair in pairs if pair[0] != first.colour])
    back = {"left": "right", "right": "left"}[first.direction]
    second = Actor(colour, shape, one_of((None, *TEXTURES)) if textures else None, "moves", back)
    return Scene((first, second))


@functools.cache
def _pairs(of_unseen: bool) -> tuple[tuple[str, str], ...]:
    all_pairs = ((colour, shape) for colour in COLOURS for shape in SHAPES)
    return tuple(pair for pair in all_pairs if unseen(*pair) == of_unseen)
