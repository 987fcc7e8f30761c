"""Pictures of scenes: flat colours on a dark ground, with edges one pixel soft.

Lengths are in *units*, the 32nd part of the shorter side of the picture, so that shapes look the same at
any size; letters have strokes of whole pixels, as many as fit into a unit. What a scene does not say
(where a thing is, the exact size, the ground) is random.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from dit.scenes import letters
from dit.scenes.grammar import COLOURS, SIZES, Scene, Thing
from dit.scenes.outline import distance

UNITS = 32  # in the shorter side
RADII = {"small": (3.8, 4.6), "large": (6.0, 6.8)}
OF_SEVERAL = (3.7, 4.3)  # radii where things are counted
REACH = 1.05  # what extends furthest from the middle of a shape, over its radius
BORDER, GAP = 0.75, 2.0  # least distances to the border and between things
TRIES = 40  # candidates for a place among others, and attempts to place all


def draw(
    scene: Scene, rng: np.random.Generator, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of ``scene`` of ``size`` (height, width), a pure function of these and of ``rng``."""
    unit = min(size) / UNITS
    ground = 0.05 + 0.08 * rng.random() + 0.05 * rng.random(3)
    if scene.kind == "word":
        ink = _word(scene.things[0].shape, rng, size)[None]
    else:
        radii, middles = _layout(scene, rng, (size[0] / unit, size[1] / unit))
        ink = _shapes(scene.things, unit * radii, unit * middles, size)
    colours = np.array([COLOURS[thing.colour] for thing in scene.things])
    x = ground + np.tensordot(ink, colours - ground, (0, 0))
    return np.rint(255 * x).astype(np.uint8)


def coverage(
    shape: str,
    radius: Float[np.ndarray, " n"],
    middle: Float[np.ndarray, "n 2"],
    size: tuple[int, int],
) -> Float[np.ndarray, "n h w"]:
    """How much of each pixel is inside a shape, for n of them; all in pixels."""
    (y, x), (height, width) = middle.T[:, :, None, None], size
    dy = np.arange(height)[:, None] + 0.5 - y
    dx = np.arange(width) + 0.5 - x
    return np.clip(0.5 - distance(shape, dy, dx, radius[:, None, None]), 0, 1)


def _shapes(
    things: tuple[Thing, ...], radii: np.ndarray, middles: np.ndarray, size: tuple[int, int]
) -> Float[np.ndarray, "n h w"]:
    if len({thing.shape for thing in things}) == 1:
        return coverage(things[0].shape, radii, middles, size)
    each = zip(things, radii[:, None], middles[:, None], strict=True)
    return np.concatenate([coverage(thing.shape, r, middle, size) for thing, r, middle in each])


def _layout(
    scene: Scene, rng: np.random.Generator, room: tuple[float, float]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"]]:
    """Radii and middles of the things, in units, with ``room`` for them."""
    if scene.kind == "count":
        radius = rng.uniform(*OF_SEVERAL)
        return np.full(len(scene.things), radius), _apart(len(scene.things), radius, rng, room)
    sizes = [thing.size or SIZES[int(rng.integers(2))] for thing in scene.things]
    radii = np.array([rng.uniform(*RADII[size]) for size in sizes])
    edge = REACH * radii + BORDER
    if scene.kind == "one":
        return radii, rng.uniform(edge, np.array(room) - edge)[None]
    along = 1 if scene.relation == "left of" else 0  # the axis on which they are apart
    low, high = edge[0], room[along] - edge[1]
    least = REACH * radii.sum() + GAP
    step = rng.uniform(min(least, high - low), high - low)
    first = rng.uniform(low, max(low, high - step))  # which rounding can make the lesser
    across = rng.uniform(edge[0], room[1 - along] - edge[0])
    other = np.clip(across + 0.6 * step * rng.uniform(-1, 1), edge[1], room[1 - along] - edge[1])
    middles = np.array([[across, first], [other, first + step]])
    return radii, middles if along else middles[:, ::-1]


def _apart(
    count: int, radius: float, rng: np.random.Generator, room: tuple[float, float]
) -> Float[np.ndarray, "n 2"]:
    """Random places at which ``count`` things do not touch."""
    edge, least = REACH * radius + BORDER, 2 * REACH * radius + GAP
    span = np.array(room) - 2 * edge
    for _ in range(TRIES):
        chosen, left = np.empty((0, 2)), rng.random((TRIES, 2)) * span
        while len(left) and len(chosen) < count:
            chosen = np.concatenate([chosen, left[:1]])
            left = left[((left - left[0]) ** 2).sum(1) >= least**2]
        if len(chosen) == count:
            return chosen + edge
    corners = np.array([(0, 0), (1, 1), (0, 1), (1, 0), (0.5, 0.5)])[:count]
    return corners * span + edge


def stroke(size: tuple[int, int]) -> int:
    """The width of the strokes of letters, in pixels."""
    return min(size) // UNITS


def _word(word: str, rng: np.random.Generator, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """The ink of a word at a random place, a whole number of strokes from the corner."""
    each, letter = stroke(size), letters.written(word)
    room = [side // each - n for side, n in zip(size, letter.shape, strict=True)]
    at = [each * (1 + int(rng.integers(n - 1))) for n in room]
    big = np.kron(letter, np.ones((each, each)))
    ink = np.zeros(size)
    ink[tuple(slice(k, k + n) for k, n in zip(at, big.shape, strict=True))] = big
    return ink
