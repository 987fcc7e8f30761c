"""Read a picture of ``dit.scenes`` back, in closed form: nothing here is learned.

A picture is what it can best be drawn as. Pixels nearer to some colour than to the ground are joined
into regions; each is compared with every shape of its area and centroid, drawn by the code that draws
the data, and the whole picture with words in the letters of the data. A drawing ``T`` in its best colour
explains

    ``|sum T x|^2 / sum T^2``

of the energy ``sum |x|^2`` of the ink ``x``, the picture less its ground. What explains most is read.
Larger pictures are first reduced until the strokes of their letters are one pixel wide.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from dit.scenes import letters
from dit.scenes.draw import RADII, UNITS, coverage, stroke
from dit.scenes.grammar import COLOURS, SHAPES, Thing
from dit.types import UserError

LEAST = 10.0  # square units: what is smaller is a speck
BORDERLINE = (RADII["small"][1] + RADII["large"][0]) / 2  # between small and large
LONGEST = 5  # letters
PALETTE = np.array(list(COLOURS.values()))
# Factors of the radius, and shifts of the middle in units, that are tried.
TRIED = np.stack(np.meshgrid((0.93, 1, 1.07), (-0.35, 0, 0.35), (-0.35, 0, 0.35)), -1).reshape(
    -1, 3
)
AROUND = np.ones((3, 3), bool)

Ink = Float[np.ndarray, "h w 3"]
Amount = Float[np.ndarray, "h w"]  # of ink in a pixel, over that inside a thing


@dataclasses.dataclass(frozen=True)
class Found:
    """A thing in a picture, and where its middle is: ``(y, x)`` in strokes, y down."""

    thing: Thing
    middle: tuple[float, float]


def read(picture: UInt8[np.ndarray, "h w 3"]) -> tuple[Found, ...]:
    """The things in a picture, from left to right: shapes with their sizes, or one word; or nothing."""
    x, unit = reduced(picture)
    ground = np.median(x, (0, 1))
    ink, towards = x - ground, PALETTE - ground
    marked = np.max((ink @ towards.T) / np.maximum((towards**2).sum(1), 1e-9), -1) > 0.5
    labels, count = ndimage.label(marked)
    if not count:
        return ()
    shapes = []
    for i, around in enumerate(ndimage.find_objects(labels), 1):
        part = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in around)
        own = labels[part] == i
        region = ndimage.binary_dilation(own, AROUND) & (own | ~marked[part])
        amount, area = _amount(ink[part], own, region)
        if area >= LEAST * unit**2:
            corner = np.array([s.start for s in part])
            shapes.append(_shape(ink[part] * region[..., None], amount, corner, ground, unit))
    region = ndimage.binary_dilation(marked, AROUND)
    word, explained = _word(ink, _amount(ink, marked, region)[0], ground)
    total = float((ink[region] ** 2).sum())
    if explained > max(total / 2, sum(energy for _, energy in shapes)):
        return (word,)
    return tuple(sorted((found for found, _ in shapes), key=lambda found: found.middle[1]))


def reduced(
    picture: UInt8[np.ndarray, "h w 3"],
) -> tuple[Float[np.ndarray, "rows columns 3"], float]:
    """The picture in [0, 1] at one pixel a stroke, and the pixels of a unit; UserError if too small."""
    height, width = picture.shape[:2]
    if min(height, width) < UNITS:
        raise UserError(
            f"got a picture of {height} x {width}; expected {UNITS} pixels or more a side"
        )
    each = stroke((height, width))
    rows, columns = height // each, width // each
    blocks = picture[: rows * each, : columns * each].reshape(rows, each, columns, each, 3)
    return blocks.mean((1, 3)) / 255, min(height, width) / UNITS / each


def colour_of(x: Float[np.ndarray, "3"]) -> str:
    """The nearest colour."""
    return list(COLOURS)[int(((PALETTE - x) ** 2).sum(1).argmin())]


def _amount(
    ink: Ink, marked: Bool[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]
) -> tuple[Amount, float]:
    """How much ink there is in each pixel of a region, by its innermost pixels; and in all."""
    inside = ink[marked]
    order = np.argsort(inside @ inside.mean(0))
    full = inside[order[len(order) * 3 // 5 :]].mean(0)
    amount = region * (ink @ full) / max(full @ full, 1e-9)
    return amount, float(amount.sum())


@functools.cache
def _moments(shape: str) -> tuple[float, float]:
    """The area of a shape over its squared radius, and how far its centroid is below its middle."""
    big, side = 100.0, 256
    ink = coverage(shape, np.array([big]), np.full((1, 2), side / 2), (side, side))[0]
    below = ink.sum(1) @ (np.arange(side) + 0.5 - side / 2) / ink.sum()
    return float(ink.sum()) / big**2, float(below) / big


def _shape(
    ink: Ink, amount: Amount, corner: np.ndarray, ground: np.ndarray, unit: float
) -> tuple[Found, float]:
    """The shape that explains the most of the ink of one region, and how much that is."""
    area = amount.sum()
    at = [amount.sum(1 - axis) @ (np.arange(n) + 0.5) / area for axis, n in enumerate(amount.shape)]
    best = None
    for shape in SHAPES:
        square, below = _moments(shape)
        radius = math.sqrt(area / square)
        radii = radius * TRIED[:, 0]
        middles = np.array(at) - [below * radius, 0] + TRIED[:, 1:]
        drawn = coverage(shape, radii, middles, amount.shape)
        colours, energy = _explained(drawn, ink)
        i = int(energy.argmax())
        if best is None or energy[i] > best[-1]:
            best = shape, radii[i], middles[i], colours[i], float(energy[i])
    shape, radius, middle, colour, energy = best
    size = "small" if radius < BORDERLINE * unit else "large"
    y, x = (corner + middle).tolist()
    return Found(Thing(colour_of(ground + colour), shape, size), (y, x)), energy


def _explained(
    drawn: Float[np.ndarray, "n h w"], ink: Ink
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """The best colours of drawings, over the ground, and how much of the ink they explain."""
    square = np.maximum((drawn**2).sum((1, 2)), 1e-9)[:, None]
    colours = drawn.reshape(len(drawn), -1) @ ink.reshape(-1, 3) / square
    return colours, (colours**2 * square).sum(1)


def _word(ink: Ink, amount: Amount, ground: np.ndarray) -> tuple[Found, float]:
    """The word that explains the most of the ink, and how much that is.

    ``|amount - T|^2`` is least, over the places of the first letter and the number of letters; each
    letter is the one that fits its place best.
    """
    glyphs = np.stack(list(letters.GLYPHS.values()))
    shape = glyphs.shape[1:]
    windows = np.lib.stride_tricks.sliding_window_view(amount, shape)
    costs = (glyphs**2).sum((1, 2)) - 2 * np.einsum("yxij,gij->yxg", windows, glyphs, optimize=True)
    cost, letter = costs.min(-1), costs.argmin(-1)
    best = (math.inf, 0, 0, 0)
    total = np.zeros_like(cost)
    for n in range(1, LONGEST + 1):
        width = cost.shape[1] - letters.STEP * (n - 1)
        if width < 1:
            break
        total = total[:, :width] + cost[:, letters.STEP * (n - 1) :]
        y, x = np.unravel_index(total.argmin(), total.shape)
        if n > 1 and total[y, x] < best[0]:
            best = (float(total[y, x]), n, int(y), int(x))
    _, n, y, x = best
    word = "".join(list(letters.GLYPHS)[letter[y, x + letters.STEP * k]] for k in range(n))
    letter = letters.written(word)
    rows, columns = letter.shape
    drawn = np.zeros((1, *amount.shape))
    drawn[0, y : y + rows, x : x + columns] = letter
    colours, energy = _explained(drawn, ink)
    middle = (y + rows / 2, x + columns / 2)
    return Found(Thing(colour_of(ground + colours[0]), word), middle), float(energy[0])
