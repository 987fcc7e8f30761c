"""Do clips of ``dit.scenes.moving`` show what they were asked for, and move as real ones do?

Of each clip, questions that its prompt poses, answered with yes or no:

    colour     the colours of the actors are those asked for, and no others; not of emoji
    shape      each actor is, where it can be seen best, the shape, digit or emoji asked for
    pair       the shape that is asked for in each colour; the emoji, and where it goes
    direction  it moves on the ground as asked: left, right, up, down (what falls: down), or rests
    camera     the camera pans as asked, or not at all
    identity   each actor has one shape in the first and the last frame in which it is whole
    present    each actor is there, and as large, in every frame where nothing hides it
    permanent  what goes behind the post comes out on its other side

And figures, each beside that of real clips of the same captions (``_real``): ``speed``, in units a
second on the ground, of what moves; ``gravity``, the acceleration of what falls in units / s^2;
``flicker``, the change of the ground from frame to frame in steps of 8 bits, where the camera rests;
``jump``, the largest step of an actor less its usual one, in units; ``area_variation``, the deviation of
an actor's area over its mean. A still picture has no flicker: no figure is to be read alone
(``WORLD.md``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from dit.evaluation import Real, Split
from dit.evaluation.adherence import interval
from dit.evaluation.parts import Figures, Part
from dit.evaluation.tracking import Followed, Track, follow
from dit.scenes.draw import UNITS
from dit.scenes.moving.grammar import DIRECTIONS, Actor, Scene, parse
from dit.scenes.moving.motion import PAN, POST, RATES
from dit.scenes.moving.sprites import EMOJI
from dit.types import UserError

QUESTIONS = (
    *("colour", "shape", "pair", "direction", "camera"),
    *("identity", "present", "permanent"),
)
FIGURES = ("speed", "gravity", "flicker", "jump", "area_variation")
REAL = 256  # real clips that are followed
FPS = 8.0  # frames a second, of data that do not say
WHOLE = 0.85  # of its usual area, for an actor to be whole
STILL = 0.35 * RATES["slowly"][0]  # units a second, below which something rests


def answers(scene: Scene, found: Followed, fps: float) -> dict[str, bool]:
    """The answers of a clip to what ``scene`` asks."""
    tracks = {actor: found.track(actor.colour) for actor in scene.actors}
    there = [(actor, track) for actor, track in tracks.items() if track is not None]
    all_there = len(there) == len(scene.actors)
    asked = {actor.colour for actor in scene.actors}
    colour = {track.colour for track in found.tracks} == asked
    shapes = [found.shape(t.colour, _clearest(t, found)) == a.shape for a, t in there]
    shape = all_there and all(shapes)
    direction = all_there and all(_goes(a, t, found.pan, fps) for a, t in there)
    said = {
        **({} if scene.looks == "emoji" else {"colour": colour}),
        "shape": shape,
        "pair": shape and (direction if scene.looks == "emoji" else colour),
        "direction": direction,
        "camera": _sign(found.pan * fps, PAN / 2) == {"left": -1, "right": 1, None: 0}[scene.pan],
    }
    if scene.kind != "meet":
        said["identity"] = all_there and all(_same(found, t) for _, t in there)
    if scene.kind in ("drift", "fall", "pan"):
        said["present"] = all_there and all((t.area > 0.5 * t.size).all() for _, t in there)
    if scene.post and scene.actors[0].speed != "slowly":
        middle = UNITS * found.clip.shape[2] / min(found.clip.shape[1:3]) / 2
        said["permanent"] = all_there and _comes_out(*there[0], middle)
    return said


def _clearest(track: Track, found: Followed) -> int:
    """The frame in which an actor is whole, or nearly, and furthest from others."""
    others = [other.middle for other in found.tracks if other is not track]
    away = [np.linalg.norm(track.middle - middle, axis=-1) for middle in others]
    away = np.nan_to_num(np.min(away, axis=0), nan=UNITS) if away else np.zeros(len(track.area))
    whole = track.area > WHOLE * track.size
    return int(np.where(whole, away + track.area / track.area.max(), -1).argmax())


def _sign(value: float, least: float) -> int:
    return 0 if abs(value) < least else int(math.copysign(1, value))


def steps(track: Track, pan: float) -> np.ndarray:
    """The steps of an actor on the ground, units a frame, between frames in which it is whole."""
    whole = track.area > WHOLE * track.size
    return np.diff(track.middle, axis=0)[whole[1:] & whole[:-1]] + [0, pan]


def _goes(actor: Actor, track: Track, pan: float, fps: float) -> bool:
    """Whether it begins to move as asked."""
    taken = fps * steps(track, pan)
    if not len(taken):
        return False
    first = np.median(taken[: max(3, len(taken) // 3)], axis=0)
    if actor.action == "rests":
        return float(np.linalg.norm(np.median(taken, axis=0))) < STILL
    if actor.action == "falls":
        return float(taken[:, 0].max()) > STILL and abs(float(first[1])) < STILL
    along, across = first @ DIRECTIONS[actor.direction], first @ DIRECTIONS[actor.direction][::-1]
    return bool(along > STILL and along > 2 * abs(across))


def _same(found: Followed, track: Track) -> bool:
    """Whether it is of one shape at the beginning and at the end."""
    whole = np.flatnonzero(track.area > WHOLE * track.size)
    first, last = (found.shape(track.colour, int(k)) for k in (whole[0], whole[-1]))
    return first is not None and first == last


def _comes_out(actor: Actor, track: Track, middle: float) -> bool:
    """Whether it comes from one side of the post, near the ``middle``, and is seen on the other."""
    seen = track.area > 0.5 * track.area.max()
    sign, half = DIRECTIONS[actor.direction][1], POST / 2
    along = sign * (track.middle[seen, 1] - middle)
    return bool(along[0] < -half and along.max() > half)


def figures(scene: Scene, found: Followed, fps: float) -> dict[str, float]:
    """The ``FIGURES`` of one clip that its scene permits; NaN where an actor is missing."""
    values: dict[str, float] = {}
    if scene.pan is None:
        values["flicker"] = found.flicker
    tracks = [found.track(actor.colour) for actor in scene.actors]
    if any(track is None for track in tracks):
        return values
    actor, track = scene.actors[0], tracks[0]
    length = np.linalg.norm(steps(track, found.pan), axis=-1)
    if len(length) and actor.action == "moves":
        values["speed"] = float(length.mean()) * fps
    if scene.kind in ("drift", "pan") and actor.action != "falls" and len(length):
        values["jump"] = float(length.max() - np.median(length))
    if scene.kind in ("drift", "fall", "pan"):
        values["area_variation"] = float(track.area.std() / max(track.area.mean(), 1e-9))
    if actor.action == "falls":
        values["gravity"] = acceleration(track, fps)
    return values


def acceleration(track: Track, fps: float) -> float:
    """That of a fall from rest, in units / s^2, from the frames before the floor; or NaN."""
    y = track.middle[:, 0]
    if np.isnan(y).any():
        return math.nan
    rises = np.flatnonzero(np.diff(y) < -0.2)
    end = int(rises[0]) if len(rises) else int(y.argmax())
    if end < 2:
        return math.nan
    seconds = np.arange(end) / fps  # without the last: it may have bounced just before
    square = seconds**2 / 2
    return float(square @ (y[:end] - y[0]) / max(square @ square, 1e-12))


def score(
    scenes: Sequence[Scene], clips: Sequence[UInt8[np.ndarray, "f h w 3"]], fps: float
) -> Figures:
    """The share of right answers to each question, with its 95% interval, and the mean figures.

    Shares ending in ``_seen`` are of scenes whose pairs all occur in training, in ``_unseen`` of others.
    """
    asked = {scene.actors[0].shape for scene in scenes if scene.looks == "emoji"}
    names = tuple(sorted({*asked, *EMOJI}))
    looks = [scene.looks for scene in scenes]
    found = [follow(clip, look, names) for clip, look in zip(clips, looks, strict=True)]
    rows = [answers(scene, one, fps) for scene, one in zip(scenes, found, strict=True)]
    scored: Figures = {}
    for question in QUESTIONS:
        for end, of in (("", (True, False)), ("_seen", (False,)), ("_unseen", (True,))):
            given = [
                row[question]
                for row, scene in zip(rows, scenes, strict=True)
                if question in row and scene.unseen in of
            ]
            if given:
                low, high = interval(sum(given), len(given))
                shares = (("", sum(given) / len(given)), ("_low", low), ("_high", high))
                scored |= {f"{question}{end}{bound}": value for bound, value in shares}
    measured = [figures(scene, one, fps) for scene, one in zip(scenes, found, strict=True)]
    for name in FIGURES:
        values = [row[name] for row in measured if not math.isnan(row.get(name, math.nan))]
        if values:
            scored[name] = float(np.mean(values))
    return scored


def parts(source: Real, captions: Sequence[str], asked_of: Split) -> tuple[Part, ...]:
    """What is measured of clips whose prompts were the ``captions`` of a split's first examples.

    ``score``; the same of these real clips themselves (``_real``); and ``speed_ratio``, the speed over
    that of the real ones. No part where the captions are no sentences of ``dit.scenes.moving``.
    """
    try:
        scenes = [parse(caption) for caption in captions]
    except UserError:
        return ()
    if not scenes or source.shape[0] < 2 or source.shape[3] != 3:
        return ()
    few, fps = scenes[:REAL], getattr(source, "fps", None) or FPS
    theirs = score(few, [asked_of[i % len(asked_of)]["x"] for i in range(len(few))], fps)
    names = [f"{name}_real" for name in theirs if not name.endswith(("_low", "_high"))]
    ours = [name for name in _names(scenes) if name not in FIGURES or name in theirs]
    ratio = ["speed_ratio"] if "speed" in theirs else []

    def measure(samples: UInt8[np.ndarray, "n f h w 3"], labels: np.ndarray | None) -> Figures:
        found = dict.fromkeys(FIGURES, math.nan) | score(scenes, list(samples), fps)
        found |= {f"{name}_real": value for name, value in theirs.items()}
        return found | {"speed_ratio": found["speed"] / theirs.get("speed", math.nan)}

    return (Part(dict.fromkeys((*ours, *names, *ratio), ""), measure),)


def _names(scenes: Sequence[Scene]) -> list[str]:
    """The names of all figures that ``score`` can have of these scenes."""
    found = []
    for question in QUESTIONS:
        for end, of in (("", (True, False)), ("_seen", (False,)), ("_unseen", (True,))):
            if any(question in _asked(scene) and scene.unseen in of for scene in scenes):
                found += [f"{question}{end}{bound}" for bound in ("", "_low", "_high")]
    return [*found, *FIGURES]


def _asked(scene: Scene) -> set[str]:
    """The questions that a scene poses."""
    asked = {"shape", "pair", "direction", "camera"}
    asked |= {"colour"} if scene.looks != "emoji" else set()
    asked |= {"identity"} if scene.kind != "meet" else set()
    asked |= {"present"} if scene.kind in ("drift", "fall", "pan") else set()
    return asked | ({"permanent"} if scene.post and scene.actors[0].speed != "slowly" else set())
