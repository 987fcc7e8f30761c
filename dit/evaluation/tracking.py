"""Follow the actors of a moving scene through a clip, in closed form: nothing here is learned.

A pixel is of a colour if its ink, the pixel less the ground, lies along that colour's. What there is of
a colour in a frame has an area and a middle; what shape it is, ``evaluation.reading`` reads. How far the
camera has come is the shift at which the ground of two frames agrees best.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from dit.evaluation.reading import PALETTE, read
from dit.scenes.draw import UNITS
from dit.scenes.grammar import COLOURS

LEAST = 8.0  # square units of a colour in a frame
INK = 0.5  # of a colour's strength, for a pixel to be of it
OFF = 0.3  # of a colour's strength, beside it
COARSE, FINE = 0.5, 0.125  # pixels, of the shifts of the ground that are tried
AROUND = np.ones((1, 3, 3), bool)  # in each frame by itself
CROSS = ndimage.generate_binary_structure(2, 1)[None]


@dataclasses.dataclass(frozen=True)
class Track:
    """One colour through a clip: its ``area`` (square units) and ``middle`` (y, x; units) in each frame.

    The middle is NaN where there is too little of it.
    """

    colour: str
    area: Float[np.ndarray, " f"]
    middle: Float[np.ndarray, "f 2"]

    @property
    def seen(self) -> Bool[np.ndarray, " f"]:
        """In which frames it can be seen."""
        return self.area >= LEAST

    @property
    def size(self) -> float:
        """Its area where all of it is seen: that of the upper quarter of the frames."""
        return float(np.quantile(self.area[self.seen], 0.75)) if self.seen.any() else 0.0


@dataclasses.dataclass(frozen=True)
class Followed:
    """What is in a ``clip``, which may be enlarged.

    ``tracks``: of every colour that is seen in at least a quarter of the frames. ``pan``: how far to the
    right the camera goes, in units a frame. ``flicker``: how much the ground changes from frame to
    frame, of 255; NaN where there is no ground.
    """

    clip: UInt8[np.ndarray, "f h w 3"]
    tracks: tuple[Track, ...]
    pan: float
    flicker: float

    def track(self, colour: str) -> Track | None:
        """The track of a colour, if it is there."""
        return next((track for track in self.tracks if track.colour == colour), None)

    def shape(self, colour: str, frame: int) -> str | None:
        """The shape of what has this colour in a frame; None if there is no such thing."""
        found = read(self.clip[frame])
        return next((one.thing.shape for one in found if one.thing.colour == colour), None)


def follow(clip: UInt8[np.ndarray, "f h w 3"]) -> Followed:
    """The actors of a clip, and what the camera and the ground do.

    What is smaller than what ``reading`` reads is enlarged first, by a whole factor.
    """
    clip = _enlarged(clip)
    x, unit = clip / 255, min(clip.shape[1:3]) / UNITS
    colour = colours(x)
    rows, columns = (np.arange(side) + 0.5 for side in clip.shape[1:3])
    tracks = []
    for i, name in enumerate(COLOURS):
        if (colour == i).sum() < LEAST * unit**2:
            continue
        own = _solid(colour == i)
        count = own.sum((1, 2))
        sums = np.stack([own.sum(2) @ rows, own.sum(1) @ columns], -1)
        area = count / unit**2
        middle = np.where((area >= LEAST)[:, None], sums / np.maximum(count, 1)[:, None], np.nan)
        track = Track(name, area, middle / unit)
        if track.seen.mean() >= 0.25:
            tracks.append(track)
    marked = ndimage.binary_dilation(colour >= 0, AROUND)
    ground = x.mean(-1)
    return Followed(clip, tuple(tracks), _pan(ground, marked) / unit, _flicker(ground, marked))


def areas(clip: UInt8[np.ndarray, "f h w 3"], colour: str) -> Float[np.ndarray, " f"]:
    """How much there is of a colour in every frame, in square units."""
    clip = _enlarged(clip)
    own = _solid(colours(clip / 255) == list(COLOURS).index(colour))
    return own.sum((1, 2)) / (min(clip.shape[1:3]) / UNITS) ** 2


def _enlarged(clip: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "f s r 3"]:
    times = math.ceil(UNITS / min(clip.shape[1:3]))
    return clip.repeat(times, 1).repeat(times, 2)


def _solid(mask: Bool[np.ndarray, "f h w"]) -> Bool[np.ndarray, "f h w"]:
    """The regions of masks that are somewhere thicker than the edge between two actors."""
    return ndimage.binary_propagation(ndimage.binary_opening(mask, CROSS), AROUND, mask)


def colours(x: Float[np.ndarray, "f h w 3"]) -> Int[np.ndarray, "f h w"]:
    """The number of each pixel's colour in ``COLOURS``, -1 for the ground."""
    ground = np.median(x, (1, 2))
    ink, towards = x - ground[:, None, None], PALETTE - ground[:, None]
    strength = (towards**2).sum(-1)[:, None, None]
    amount = np.einsum("fhwc,fkc->fhwk", ink, towards, optimize=True) / strength
    off = (ink**2).sum(-1)[..., None] / strength - amount**2  # of what is beside the colour
    cost = np.where((amount > INK) & (off < OFF**2), off + 0.1 * (amount - 1) ** 2, np.inf)
    return np.where(np.isfinite(cost.min(-1)), cost.argmin(-1), -1)


def _flicker(ground: Float[np.ndarray, "f h w"], marked: Bool[np.ndarray, "f h w"]) -> float:
    both = ~marked[1:] & ~marked[:-1]
    change = 255 * np.abs(np.diff(ground, axis=0))[both]
    return float(change.mean()) if change.size else math.nan


def _pan(ground: Float[np.ndarray, "f h w"], marked: Bool[np.ndarray, "f h w"]) -> float:
    """How many pixels a frame the camera goes to the right, by the first and the last frame."""
    frames, _, width = ground.shape
    free = np.where(marked, np.nan, ground)
    most = math.floor(min(width / 2, 2.0 * (frames - 1)))

    def best(shifts: Float[np.ndarray, " n"]) -> float:
        found = [(_unlike(free[0], free[-1], s), abs(s), s) for s in shifts.tolist()]
        return min(found)[-1]

    about = best(np.arange(-most, most + COARSE, COARSE))
    return best(about + np.arange(-COARSE, COARSE + FINE, FINE)) / (frames - 1)


def _unlike(first: Float[np.ndarray, "h w"], last: Float[np.ndarray, "h w"], shift: float) -> float:
    """How unlike the frames are if the camera has come ``shift`` pixels to the right."""
    whole, part = math.floor(shift), shift - math.floor(shift)
    width = first.shape[1]
    columns = np.arange(width) + whole
    inside = (columns >= 0) & (columns + 1 < width)
    moved = (1 - part) * first[:, columns[inside]] + part * first[:, columns[inside] + 1]
    other = last[:, inside]
    both = ~(np.isnan(moved) | np.isnan(other))
    if both.sum() < 8:
        return math.inf
    a, b = moved[both], other[both]
    a, b = a - a.mean(), b - b.mean()
    return float(((a - b) ** 2).mean() / (0.5 * (a**2 + b**2).mean() + 1e-6))
