"""Follow the actors of a moving scene through a clip, in closed form: nothing here is learned.

A pixel is of a colour if its ink, the pixel less the ground, lies along that colour's. What there is of
a colour in a frame has an area and a middle; what shape it is, ``evaluation.reading`` reads, and which
digit, ``evaluation.pictured``. An emoji is all that is not ground. How far the camera has come is the
shift at which the ground of two frames agrees best.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from dit.evaluation import pictured
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
    """One colour, or an emoji (None), through a clip: its ``area`` and ``middle`` in each frame.

    The area is in square units; the middle (y, x), in units, is NaN where there is too little of it.
    """

    colour: str | None
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

    ``looks``: of its actors. ``names``: of emoji that they may be.
    ``tracks``: of every colour that is seen in at least a quarter of the frames. ``pan``: how far to the
    right the camera goes, in units a frame. ``flicker``: how much the ground changes from frame to
    frame, of 255; NaN where there is no ground.
    """

    clip: UInt8[np.ndarray, "f h w 3"]
    looks: str
    names: tuple[str, ...]
    tracks: tuple[Track, ...]
    pan: float
    flicker: float

    def track(self, colour: str | None) -> Track | None:
        """The track of a colour, if it is there."""
        return next((track for track in self.tracks if track.colour == colour), None)

    def shape(self, colour: str | None, frame: int) -> str | None:
        """What is of this colour in a frame: a shape, digit or emoji; None if there is no such thing."""
        if self.looks == "emoji":
            own = pictured.emoji_pixels(self.clip / 255)[frame]
            return pictured.emoji(self.clip[frame], self.names, own)
        if self.looks == "digit":
            own = colours(self.clip[frame : frame + 1] / 255, thin=True)[0]
            return pictured.digit(self.clip[frame], colour, own == list(COLOURS).index(colour))
        found = read(self.clip[frame])
        return next((one.thing.shape for one in found if one.thing.colour == colour), None)


def follow(
    clip: UInt8[np.ndarray, "f h w 3"], looks: str = "shape", names: tuple[str, ...] = ()
) -> Followed:
    """The actors of a clip, and what the camera and the ground do.

    ``looks``: of the actors, as ``Scene.looks``; ``names``: of the emoji that they may be. What is
    smaller than what ``reading`` reads is enlarged first, by a whole factor.
    """
    clip = _enlarged(clip)
    x, unit = clip / 255, min(clip.shape[1:3]) / UNITS
    marked, tracks = np.zeros(clip.shape[:3], bool), []
    for colour, own in _actors(x, looks).items():
        marked |= own
        if own.sum() >= LEAST * unit**2:
            track = _track(colour, _kept(own, looks), unit)
            if track.seen.mean() >= 0.25:
                tracks.append(track)
    marked = ndimage.binary_dilation(marked, AROUND)
    ground = x.mean(-1)
    pan, flicker = _pan(ground, marked) / unit, _flicker(ground, marked)
    return Followed(clip, looks, names, tuple(tracks), pan, flicker)


def areas(
    clip: UInt8[np.ndarray, "f h w 3"], colour: str | None, looks: str = "shape"
) -> Float[np.ndarray, " f"]:
    """How much there is in every frame of a colour, or of an emoji (None), in square units."""
    clip = _enlarged(clip)
    own = _kept(_actors(clip / 255, looks)[colour], looks)
    return own.sum((1, 2)) / (min(clip.shape[1:3]) / UNITS) ** 2


def _actors(
    x: Float[np.ndarray, "f h w 3"], looks: str
) -> dict[str | None, Bool[np.ndarray, "f h w"]]:
    """The pixels of each colour, or of emoji."""
    if looks == "emoji":
        return {None: pictured.emoji_pixels(x)}
    found = colours(x, thin=looks == "digit")
    return {name: found == i for i, name in enumerate(COLOURS)}


def _track(colour: str | None, own: Bool[np.ndarray, "f h w"], unit: float) -> Track:
    rows, columns = (np.arange(side) + 0.5 for side in own.shape[1:])
    count = own.sum((1, 2))
    sums = np.stack([own.sum(2) @ rows, own.sum(1) @ columns], -1)
    area = count / unit**2
    middle = np.where((area >= LEAST)[:, None], sums / np.maximum(count, 1)[:, None], np.nan)
    return Track(colour, area, middle / unit)


def _enlarged(clip: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "f s r 3"]:
    times = math.ceil(UNITS / min(clip.shape[1:3]))
    return clip.repeat(times, 1).repeat(times, 2)


def _kept(mask: Bool[np.ndarray, "f h w"], looks: str) -> Bool[np.ndarray, "f h w"]:
    """The regions of masks that are somewhere thicker than the edge between two actors.

    The strokes of digits are not: all is kept.
    """
    if looks == "digit":
        return mask
    return ndimage.binary_propagation(ndimage.binary_opening(mask, CROSS), AROUND, mask)


def colours(x: Float[np.ndarray, "f h w 3"], thin: bool = False) -> Int[np.ndarray, "f h w"]:
    """The number of each pixel's colour in ``COLOURS``, -1 for the ground.

    ``thin``: ink is of all strengths, as in the strokes of digits, and tells less by itself: a pixel is
    of the colour that explains it best together with those around it.
    """
    ground = np.median(x, (1, 2))
    ink, towards = x - ground[:, None, None], PALETTE - ground[:, None]
    strength = (towards**2).sum(-1)[:, None, None]
    amount = np.einsum("fhwc,fkc->fhwk", ink, towards, optimize=True) / strength
    off = (ink**2).sum(-1)[..., None] / strength - amount**2  # of what is beside the colour
    able = (amount > INK) & (off < OFF**2)
    if thin:
        around = ndimage.uniform_filter(off * strength, (0, 3, 3, 0))
        of_all = around.argmin(-1)
        return np.where(np.take_along_axis(able, of_all[..., None], -1)[..., 0], of_all, -1)
    cost = np.where(able, off + 0.1 * (amount - 1) ** 2, np.inf)
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
