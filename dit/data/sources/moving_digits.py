"""Short clips of the real handwritten digits, drifting and bouncing in a canvas.

Clip ``i`` is a pure function of ``(seed, i)``: one digit of ``dit.data.sources.digits``, a place,
a speed and a direction, then straight motion that is reflected at the borders,

    p_k = | (p_0 + k v + L) mod 2L - L |,    L = size - side,

along each axis, so nothing is ever cut off. Digits are ``side`` pixels wide, places are rounded to 1/16
pixel, and both are drawn with bilinear weights: all sums are small integers, hence the same on every
machine. The centroid of a frame moves as ``p_k`` does, exactly for the 8 pixels of the originals.
Held-out clips use only the held-out digits, in turn. Training clips are ever new ones, unless so many
``clips`` are asked for; these come again in every epoch.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dit.data.source import STREAM_LENGTH, ArraySplit, Example, Source, Stream, identity
from dit.data.sources import digits
from dit.types import Count, NonNegative, Seed, UserError

SIDE = 8  # of an original digit, in pixels
GRAIN = 16  # places are multiples of 1/16 pixel


def build(
    *,
    frames: Count = 8,
    size: Count | tuple[Count, Count] = 16,
    side: Count = SIDE,
    speed: tuple[NonNegative, NonNegative] = (0.5, 1.5),
    seed: Seed = 0,
    clips: Count | None = None,
    held_out_clips: Count = 2000,
) -> Source:
    """Clips of ``frames`` frames of ``size x size`` or (height, width), of digits ``side`` wide.

    All in pixels. ``speed``: (low, high), a frame. ``clips``: of the training split; None for no end.
    """
    (low, high), canvas = speed, pair(size)
    if frames < 1 or held_out_clips < 1:
        raise UserError(f"got frames={frames}, held_out_clips={held_out_clips}; expected 1 or more")
    if not SIDE <= side < min(canvas):
        raise UserError(f"got size={size}, side={side}; expected {SIDE} <= side < size, in pixels")
    if not 0 <= low <= high <= min(canvas) - side:
        raise UserError(
            f"got speed={speed}; expected 0 <= low <= high <= {min(canvas) - side} pixels a frame, so "
            "that a digit crosses the canvas at most once a frame"
        )
    still = digits.build()
    name = identity(
        "moving_digits",
        frames=frames,
        size=size,
        side=side,
        speed=[low, high],
        seed=seed,
        of=still.fingerprint,
        **({} if clips is None else {"clips": clips}),
    )

    def split(part: str, of: ArraySplit, length: int) -> Clips:
        return Clips(
            digits=of.x,
            labels=of.label,
            frames=frames,
            size=canvas,
            side=side,
            speed=(low, high),
            seed=seed,
            length=length,
            fingerprint=f"{name}/{part}",
            streaming=clips is None,
        )

    return Source(
        train=split("train", still.train, clips or STREAM_LENGTH),
        held_out=split("held_out", still.held_out, held_out_clips),
        shape=(frames, *canvas, 1),
        num_classes=10,
        fingerprint=name,
        streaming=clips is None,
    )


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a square of ``size``, or as they are given."""
    return (size, size) if isinstance(size, int) else size


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Clips(Stream):
    """A stream of ``length`` clips of the ``digits`` ``(n, 1, 8, 8, 1)`` and their ``labels``."""

    digits: np.ndarray
    labels: np.ndarray
    frames: int
    size: tuple[int, int]
    side: int
    speed: tuple[float, float]

    def make(self, rng: np.random.Generator, i: int) -> Example:
        u = rng.random(5)
        finite = self.length < STREAM_LENGTH
        which = i % len(self.digits) if finite else int(u[4] * len(self.digits))
        place = self.path(u)
        clip = draw(self.digits[which, 0, :, :, 0], place, self.size, self.side)
        return {"x": clip[..., None], "label": int(self.labels[which])}

    def path(self, u: np.ndarray) -> np.ndarray:
        """Corner ``(f, 2)`` of the digit in sixteenths of a pixel, from 4 uniform numbers."""
        room = np.array(self.size) - self.side
        speed = self.speed[0] + (self.speed[1] - self.speed[0]) * u[2]
        velocity = speed * np.array([np.sin(2 * np.pi * u[3]), np.cos(2 * np.pi * u[3])])
        place = room * u[:2] + np.arange(self.frames)[:, None] * velocity
        return np.rint(GRAIN * reflect(place, room)).astype(np.float32)


def reflect(place: np.ndarray, room: np.ndarray | float | int) -> np.ndarray:
    """Fold positions on a line into ``[0, room]``, as if bouncing between two walls."""
    return np.abs((place + room) % (2 * room) - room)


def draw(
    digit: np.ndarray, place: np.ndarray, size: int | tuple[int, int], side: int = SIDE
) -> np.ndarray:
    """Frames ``(f, h, w)`` uint8 of an ``8 x 8`` digit with its corner at ``place / 16``.

    The digit's pixel ``i`` has its middle ``(i + 1/2) side / 8`` from the corner, and its weight falls
    to zero at the middle of the next.
    """
    step = GRAIN * side // SIDE  # between two pixels of the digit, in sixteenths
    first = (step - GRAIN) / 2
    height, width = pair(size)
    places = GRAIN * np.arange(max(height, width))[:, None] - first - step * np.arange(SIDE)
    offset = np.abs(places.astype(np.float32) - place[:, :, None, None])  # (f, 2, size, 8)
    weight = np.maximum(0, step - offset)
    rows, columns = weight[:, 0, :height], weight[:, 1, :width]
    ink = rows @ digit.astype(np.float32) @ columns.transpose(0, 2, 1)
    return np.floor(ink / step**2 + 0.5).astype(np.uint8)
