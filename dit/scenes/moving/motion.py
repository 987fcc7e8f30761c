"""What happens in a moving scene: where everything is at every moment.

Lengths are in *units*, the 32nd part of the shorter side of the picture, and times in seconds, so that
films of any size and frame rate show the same. On the ground, at time s from the start,

    moves     p(s) = p_0 + v s, reflected where the ground ends
    falls     y(s) = y_0 + g s^2 / 2, reflected at the floor, where it keeps 0.6 of its speed
    rests     p(s) = p_0

and a camera that pans looks at what is ``PAN s`` further to its side. What the sentence leaves open
(place, size, exact speed) is random.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from dit.scenes.draw import BORDER, REACH, UNITS
from dit.scenes.moving.grammar import DIRECTIONS, SPEEDS, Actor, Scene

RADII = (3.8, 5.2)  # units
RATES = {"slowly": (5.0, 8.0), "quickly": (14.0, 20.0)}  # units a second
GRAVITY = 36.0  # units / s^2
KEPT = 0.6  # of the speed at the floor
AHEAD = 0.5  # seconds until the first wall
PAN = 7.0  # units a second
POST = 5.0  # units wide

Track = Float[np.ndarray, "f 2"]  # (y, x) of a middle in the picture, in units


@dataclasses.dataclass(frozen=True)
class Path:
    """How an actor goes: its ``radius``, and its ``middle`` in every frame, in units."""

    actor: Actor
    radius: float
    middle: Track


@dataclasses.dataclass(frozen=True)
class Events:
    """All that happens. ``pan``: how far to the right the camera has come in each frame, in units.

    ``post``: the left edge of the post in every frame; None where there is none.
    """

    paths: tuple[Path, ...]
    pan: Float[np.ndarray, " f"]
    post: Float[np.ndarray, " f"] | None


def events(
    scene: Scene,
    rng: np.random.Generator,
    frames: int,
    fps: float,
    size: tuple[int, int],
    radii: tuple[float, float] = RADII,
) -> Events:
    """What happens in ``frames`` frames at ``fps``, in a picture of ``size`` (height, width) pixels.

    ``radii``: the least and the largest radius of an actor.
    """
    seconds = np.arange(frames) / fps
    room = np.array(size) * UNITS / min(size)
    side = {"left": -1, "right": 1, None: 0}[scene.pan]
    pan = PAN * side * seconds
    sizes = [rng.uniform(*radii) for _ in scene.actors]
    if scene.kind == "meet":
        tracks = _meeting(scene.actors, sizes, rng, seconds, room)
    else:
        tracks = [_alone(scene, sizes[0], rng, seconds, room)]
    middles = [track - np.stack([np.zeros_like(pan), pan], -1) for track in tracks]
    post = None
    if scene.post:
        post = np.full(frames, (room[1] - POST) / 2 + rng.uniform(-2, 2))
    paths = zip(scene.actors, sizes, middles, strict=True)
    return Events(tuple(Path(*path) for path in paths), pan, post)


def _alone(
    scene: Scene, radius: float, rng: np.random.Generator, seconds: np.ndarray, room: np.ndarray
) -> Track:
    """Where a single actor is on the ground."""
    actor, edge = scene.actors[0], REACH * radius + BORDER
    low, high = np.full(2, edge), room - edge
    travel = PAN * float(seconds[-1]) * {"left": -1, "right": 1, None: 0}[scene.pan]
    low[1], high[1] = low[1] + max(travel, 0), high[1] + min(travel, 0)  # in sight to the end
    start = low + rng.random(2) * np.maximum(high - low, 0)
    if actor.action == "falls":
        start[0] = low[0] + 0.3 * rng.random() * (high[0] - low[0])
        return np.stack([_fall(start[0], high[0], seconds), np.full(len(seconds), start[1])], -1)
    if actor.action == "rests":
        return np.tile(start, (len(seconds), 1))
    velocity = rate(actor, rng, scene.post) * np.array(DIRECTIONS[actor.direction], float)
    along = int(velocity[0] == 0)  # the axis
    behind, before = (low, high) if velocity[along] > 0 else (high, low)
    if scene.post:  # it begins at the side that it comes from
        start[along] = behind[along]
    else:  # and elsewhere not right before a wall: its first steps show the direction
        share = abs(velocity[along]) * AHEAD / max(high[along] - low[along], 1e-9)
        part = rng.random() * max(1 - share, 0)
        start[along] = behind[along] + part * (before[along] - behind[along])
    line = start + seconds[:, None] * velocity
    line[:, along] = bounced(line[:, along], low[along], high[along])
    return line


def _meeting(
    actors: tuple[Actor, ...],
    radii: list[float],
    rng: np.random.Generator,
    seconds: np.ndarray,
    room: np.ndarray,
) -> list[Track]:
    """Two that come from the two sides, at heights at which they touch."""
    edges = [REACH * radius + BORDER for radius in radii]
    height = rng.uniform(max(edges), room[0] - max(edges))
    tracks = []
    for actor, edge in zip(actors, edges, strict=True):
        sign = DIRECTIONS[actor.direction][1]
        start = edge if sign > 0 else room[1] - edge
        y = np.clip(height + rng.uniform(-2, 2), edge, room[0] - edge)
        x = bounced(start + sign * rate(actor, rng, True) * seconds, edge, room[1] - edge)
        tracks.append(np.stack([np.full(len(seconds), y), x], -1))
    return tracks


def rate(actor: Actor, rng: np.random.Generator, meets: bool = False) -> float:
    """The speed of what moves, in units a second: quick where it ``meets`` something, if not said."""
    said = actor.speed or ("quickly" if meets else SPEEDS[int(rng.integers(len(SPEEDS)))])
    return float(rng.uniform(*RATES[said]))


def bounced(place: Float[np.ndarray, " f"], low: float, high: float) -> Float[np.ndarray, " f"]:
    """Places on a line, reflected into ``[low, high]``."""
    room = max(high - low, 1e-9)
    return low + np.abs((place - low + room) % (2 * room) - room)


def _fall(start: float, floor: float, seconds: np.ndarray) -> Float[np.ndarray, " f"]:
    """Heights of what is let go at ``start`` and bounces on the ``floor``; y points down."""
    drop = max(floor - start, 0.0)
    first = math.sqrt(2 * drop / GRAVITY)  # when it hits the floor
    y = np.minimum(start + GRAVITY * seconds**2 / 2, floor)
    speed, begin = GRAVITY * first * KEPT, first
    while speed > 0.5:
        length = 2 * speed / GRAVITY
        inside = (seconds >= begin) & (seconds < begin + length)
        s = seconds[inside] - begin
        y[inside] = floor - speed * s + GRAVITY * s**2 / 2
        begin, speed = begin + length, speed * KEPT
    return y
