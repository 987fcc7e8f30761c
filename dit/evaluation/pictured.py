"""Which digit, or which emoji, something in a picture is: the nearest drawing, nothing is learned.

What is there is cut out along its edges, brought to one size and compared with the drawings that films
are made of: a digit with the scans that are trained on, and the vote of the nearest; an emoji with all
that it might be.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from dit.scenes import digits
from dit.scenes.draw import UNITS
from dit.scenes.grammar import COLOURS
from dit.scenes.moving.film import GREY
from dit.scenes.moving.sprites import emoji_sprite

AROUND = np.ones((3, 3), bool)
SIDE = 12  # pixels at which drawings are compared
# Pixels that a square is larger than what is marked, and lies further down and to the right.
TRIED = np.stack(
    np.meshgrid((-1, 0, 1), (-0.5, 0, 0.5), (-0.5, 0, 0.5), indexing="ij"), -1
).reshape(-1, 3)
NEAREST = 5  # scans that vote
EDGE = 0.4  # of a digit's ink, at which it is cut out
AWAY = 0.2  # from the ground, in [0, 1], for a pixel to be an emoji's
FEW = 4  # of nine pixels, that are no noise
ALIKE = 0.1  # to the post, for a pixel to be the post's


def emoji_pixels(x: Float[np.ndarray, "f h w 3"]) -> Bool[np.ndarray, "f h w"]:
    """What is neither of the ground nor of the post, in groups of ``FEW`` pixels or more."""
    away = np.abs(x - np.median(x, (1, 2), keepdims=True)).max(-1) > AWAY
    grey = np.abs(np.median(x, 0) - GREY).max(-1) < ALIKE  # the post stands still
    away &= grey.mean(0) < 0.5  # and is as high as the picture
    among = ndimage.convolve(away.astype(np.int8), AROUND[None].astype(np.int8), mode="constant")
    return away & ndimage.binary_dilation(away & (among >= FEW), AROUND[None])


def emoji(
    picture: UInt8[np.ndarray, "h w 3"], names: tuple[str, ...], own: Bool[np.ndarray, "h w"]
) -> str | None:
    """Which of the emoji ``names`` the picture shows in its pixels ``own``; None if there are none."""
    if not own.any():
        return None
    x = picture / 255
    ground = np.median(x, (0, 1))
    templates = np.stack([_emoji(name, *ground.tolist()) for name in names])
    return names[int(_costs(_cuts(x - ground, own), templates).argmin())]


def digit(
    picture: UInt8[np.ndarray, "h w 3"], colour: str, own: Bool[np.ndarray, "h w"]
) -> str | None:
    """Which digit the picture shows in a colour; None if it shows nothing in it.

    ``own``: the pixels of this colour.
    """
    x = picture / 255
    ground = np.median(x, (0, 1))
    towards = np.array(COLOURS[colour]) - ground
    amount = np.clip((x - ground) @ towards / (towards @ towards), 0, 1)
    amount = amount * ndimage.binary_dilation(own, AROUND)
    marked = (amount > EDGE) & ndimage.binary_dilation(own)
    if not marked.any():
        return None
    templates, labels = _scans()
    near = np.argsort(_costs(_cuts(amount[..., None], marked), templates))[:NEAREST]
    return digits.WORDS[int(np.bincount(labels[near]).argmax())]


def _costs(cuts: Float[np.ndarray, "n d"], templates: Float[np.ndarray, "m d"]) -> np.ndarray:
    """How unlike each template the most alike of the cuts is."""
    square = (cuts**2).sum(1)[:, None] + (templates**2).sum(1)
    return (square - 2 * cuts @ templates.T).min(0)


def _cuts(x: Float[np.ndarray, "h w c"], marked: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Squares about as large as what is marked, and about there, each ``SIDE`` wide and in a row."""
    rows, columns = (np.flatnonzero(marked.any(axis)) for axis in (1, 0))
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    middle = [(k[0] + k[-1] + 1) / 2 for k in (rows, columns)]
    margin = math.ceil(side)
    wide = np.pad(x, ((margin, margin), (margin, margin), (0, 0))).astype(np.float32)
    channels = [Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(wide, -1, 0)]
    found = []
    for larger, down, right in TRIED:
        y, x_ = (m + margin + by for m, by in zip(middle, (down, right), strict=True))
        half = (side + larger) / 2
        box = (x_ - half, y - half, x_ + half, y + half)
        cut = [c.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box) for c in channels]
        found.append(np.stack([np.asarray(c) for c in cut], -1).ravel())
    return np.stack(found)


@functools.cache
def _scans() -> tuple[Float[np.ndarray, "n d"], np.ndarray]:
    """All scans that are trained on, cut out as pictures are, and their digits."""
    found, labels = [], []
    for label, word in enumerate(digits.WORDS):
        for scan in digits.scans(word):
            found.append(_template(scan[..., None], scan > EDGE))
            labels.append(label)
    return np.stack(found), np.array(labels)


@functools.lru_cache(maxsize=4096)
def _emoji(name: str, *ground: float) -> Float[np.ndarray, " d"]:
    """An emoji on such a ground, less the ground, cut out as pictures are."""
    picture = emoji_sprite(name, UNITS)
    x = picture[..., :3] - picture[..., 3:] * np.array(ground)
    return _template(x, np.abs(x).max(-1) > AWAY)


def _template(x: Float[np.ndarray, "h w c"], marked: Bool[np.ndarray, "h w"]) -> np.ndarray:
    return _cuts(x, marked)[len(TRIED) // 2]
