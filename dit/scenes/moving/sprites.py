"""Actors that are pictures: a real handwritten digit in a colour, or an emoji in its own.

A sprite is what it adds to a picture: its ink, which covers what is behind it, and its colours times
the ink. It is as large as the shapes are: what extends furthest from its middle, along either axis, is
``REACH`` radii away.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from dit.scenes import digits, emoji
from dit.scenes.draw import REACH
from dit.scenes.grammar import COLOURS
from dit.scenes.moving.grammar import Actor
from dit.types import UserError

EMOJI = (  # which look unlike each other, also on dark ground and when they are small
    *("butterfly", "red apple", "rocket", "sunflower", "octopus", "hot dog", "pizza", "frog"),
    *("lady beetle", "red heart", "sailboat", "bell", "cactus", "fire", "key", "basketball"),
    *("tropical fish", "ghost", "carrot", "mushroom", "crown", "banana", "gem stone", "bouquet"),
)
FINE = 128  # pixels at which an emoji's edges are found

Sprite = Float[np.ndarray, "s s 4"]  # red, green and blue times the ink, and the ink


def sprite(actor: Actor, rng: np.random.Generator, held_out: bool, side: float) -> Sprite:
    """The picture of a digit or an emoji. ``side``: how many pixels wide it will be.

    ``held_out``: whether a digit is one of the scans that are never trained on. Raises UserError where
    the packages of emoji are not installed, or there is no such emoji.
    """
    if actor.looks == "emoji":
        return emoji_sprite(actor.shape, max(1, round(side)))
    scans = digits.scans(actor.shape, held_out)
    return inked(scans[int(rng.integers(len(scans)))], actor.colour)


def inked(ink: Float[np.ndarray, "s s"], colour: str) -> Sprite:
    """Ink of one colour."""
    return ink[..., None] * np.array([*COLOURS[colour], 1.0])


@functools.lru_cache(maxsize=4096)
def emoji_sprite(name: str, side: int) -> Sprite:
    """An emoji without its margins, ``side`` pixels wide or high, the longer of both."""
    whole = _cut_out(name)
    channels = [Image.fromarray(channel) for channel in np.moveaxis(whole, -1, 0)]
    small = [channel.resize((side, side), Image.Resampling.BOX) for channel in channels]
    return np.stack([np.asarray(channel) for channel in small], -1)


@functools.lru_cache(maxsize=256)
def _cut_out(name: str) -> Float[np.ndarray, "s s 4"]:
    """An emoji, large, in the least square around it."""
    text = emoji.texts().get(name)
    if text is None:
        raise UserError(
            f"got the emoji {name!r}; expected an English name of the package emoji, such as "
            "'butterfly' or 'red apple'"
        )
    white, black = (emoji.draw(text, FINE, ground) / 255 for ground in ("white", "black"))
    ink = 1 - (white - black).mean(-1)
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    out = np.zeros((side, side, 4), np.float32)
    own = np.concatenate([black, ink[..., None]], -1)
    own = own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = ((side - n) // 2 for n in own.shape[:2])
    out[y : y + own.shape[0], x : x + own.shape[1]] = own
    return out


def placed(
    picture: Sprite,
    radius: float,
    middle: Float[np.ndarray, "f 2"],
    size: tuple[int, int],
) -> Float[np.ndarray, "f h w 4"]:
    """A sprite at its place in every frame, interpolated between pixels; all in pixels."""
    half, side = REACH * radius, len(picture)
    least, most = np.floor(middle - half - 1), np.ceil(middle + half + 1)
    out = np.zeros((len(middle), *size, 4))
    for frame, (y, x) in enumerate(middle):
        part = tuple(
            slice(max(0, int(a)), max(0, min(n, int(b))))
            for a, b, n in zip(least[frame], most[frame], size, strict=True)
        )
        at = [
            (np.arange(s.start, s.stop) + 0.5 - m + half) * side / (2 * half) - 0.5
            for s, m in zip(part, (y, x), strict=True)
        ]
        where = np.meshgrid(*at, indexing="ij")
        for channel in range(4):
            out[frame, *part, channel] = ndimage.map_coordinates(
                picture[..., channel], where, order=1, mode="grid-constant"
            )
    return out
