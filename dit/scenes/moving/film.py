"""Films of moving scenes: shapes, digits or emoji on a dark ground with faint blotches.

The blotches lie on the ground, so that a camera that pans can be seen to. Textures darken a shape in
stripes or dots that move with it. Edges are one pixel soft. What is in front covers what is behind: the
post, the first actor, the second, the ground.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dit.scenes.draw import REACH, UNITS, coverage
from dit.scenes.grammar import COLOURS
from dit.scenes.moving.grammar import Scene
from dit.scenes.moving.motion import POST, RADII, Events, Path, events
from dit.scenes.moving.sprites import placed, sprite

GREY = np.array([0.34, 0.34, 0.34])  # of the post
SHADE = 0.72  # of a colour, where a texture darkens it
PERIOD = 3.2  # of stripes and dots, in units
BLOTCHES, FAINT = 12, 0.045  # waves that make up the ground, and how strong they are


@dataclasses.dataclass(frozen=True)
class Film:
    """A clip and the truth about it. ``masks``: where each actor can be seen."""

    clip: UInt8[np.ndarray, "f h w 3"]
    events: Events
    masks: Bool[np.ndarray, "n f h w"]


def film(
    scene: Scene,
    rng: np.random.Generator,
    frames: int,
    size: tuple[int, int],
    fps: float = 8.0,
    radii: tuple[float, float] = RADII,
    held_out: bool = False,
) -> Film:
    """A film of ``scene`` of ``size`` (height, width), a pure function of these and of ``rng``.

    ``held_out``: of handwritten digits, whether to show those that are never trained on.
    """
    happens = events(scene, rng, frames, fps, size, radii)
    unit = min(size) / UNITS
    x = _ground(rng, happens, size, unit)
    seen = []
    for path in reversed(happens.paths):  # the first is in front
        if path.actor.looks == "shape":
            radius = np.full(frames, unit * path.radius)
            ink = coverage(path.actor.shape, radius, unit * path.middle, size)
            colour = _painted(path, unit, size)
        else:
            picture = sprite(path.actor, rng, held_out, 2 * REACH * unit * path.radius)
            of_all = placed(picture, unit * path.radius, unit * path.middle, size)
            ink = of_all[..., 3]
            colour = of_all[..., :3] / np.maximum(ink, 1e-9)[..., None]
        x = x + ink[..., None] * (colour - x)
        seen = [each * (1 - ink) for each in seen] + [ink]
    if happens.post is not None:
        ink = _post(happens.post * unit, POST * unit, size)
        x = x + ink[..., None] * (GREY - x)
        seen = [each * (1 - ink) for each in seen]
    masks = np.stack(seen[::-1]) > 0.5
    return Film(np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8), happens, masks)


def _ground(
    rng: np.random.Generator, happens: Events, size: tuple[int, int], unit: float
) -> Float[np.ndarray, "f h w 3"]:
    """The ground as the camera sees it."""
    base = 0.07 + 0.05 * rng.random() + 0.04 * rng.random(3)
    waves = rng.uniform(-1, 1, (BLOTCHES, 2)) * (2 * np.pi / 9)  # a unit, along y and x
    phase = rng.uniform(0, 2 * np.pi, BLOTCHES)
    y, x = (np.arange(side) / unit for side in size)
    along = waves[:, 0, None, None, None] * y[:, None] + phase[:, None, None, None]
    across = waves[:, 1, None, None, None] * (x + happens.pan[:, None, None])
    blotches = np.sin(along + across).mean(0) * np.sqrt(BLOTCHES)
    return base + FAINT * blotches[..., None]


def _painted(path: Path, unit: float, size: tuple[int, int]) -> Float[np.ndarray, "f h w 3"]:
    """The colour of an actor at every pixel, with the texture that it carries along."""
    y, x = (
        (np.arange(side) + 0.5) / unit - path.middle[:, axis, None]
        for axis, side in enumerate(size)
    )
    turn = 2 * np.pi / PERIOD
    dark = np.zeros((len(y), *size))
    if path.actor.texture == "striped":
        dark = 0.5 - 0.5 * np.sign(np.cos(turn * (y[:, :, None] + x[:, None, :])))
    elif path.actor.texture == "dotted":
        dark = (np.cos(turn * y)[:, :, None] + np.cos(turn * x)[:, None, :] > 0.7).astype(float)
    return np.array(COLOURS[path.actor.colour]) * (1 - (1 - SHADE) * dark[..., None])


def _post(
    left: Float[np.ndarray, " f"], width: float, size: tuple[int, int]
) -> Float[np.ndarray, "f h w"]:
    """How much of each pixel the post covers, from the top of the picture to its bottom."""
    middle = np.arange(size[1]) + 0.5
    ink = np.clip(0.5 + width / 2 - np.abs(middle - left[:, None] - width / 2), 0, 1)
    return np.repeat(ink[:, None], size[0], axis=1)
