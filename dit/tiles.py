"""Pictures side by side on a grey ground, each with its caption beneath it.

Small pictures are enlarged by a whole factor, a lower one where there are many; with captions by a
higher one, so that words have room. A drawing has a maximum size, and what would not fit is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dit.types import UserError

CELL = 64  # pixels that a picture is enlarged to, at least
LETTERED = 144  # the width of one with a caption
GAP = 1  # between pictures, in their own pixels
MOST_SIDE = 32_767  # pixels of a side, which every viewer can show
MOST_PIXELS = 89_478_485  # of all pages; Pillow refuses larger pictures as an attack
LONG = 4  # how many times wider than high a picture may be before its rows are wrapped
GREY, WHITE = 96, 255  # of the gap and of letters
LETTERS, LINE, LINES = (
    12,
    15,
    4,
)  # pixels of letters and lines, and how many lines a caption has at most
Clips = UInt8[np.ndarray, "n f h w c"]
Picture = UInt8[np.ndarray, "rows columns c"]
Places = list[list[tuple[int, int] | None]]  # (clip, frame) in each place of each row, or nothing


def rows_of(n: int, labels: np.ndarray | None) -> Places:
    """The first frames of ``n`` clips, in rows of equal length."""
    rows: list[list[int]] = [[i] for i in range(n)]
    if labels is not None:
        rows = [list(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    square = math.ceil(math.sqrt(n))
    width = max(map(len, rows))
    if width == 1:  # nothing to line up under a label
        rows, width = [[row[0] for row in rows]], square
    elif width > LONG * len(rows):
        width = square
    rows = [row[i : i + width] for row in rows for i in range(0, len(row), width)]
    return [[(int(i), 0) for i in row] + [None] * (width - len(row)) for row in rows]


def strips_of(shape: tuple[int, int], labels: np.ndarray | None) -> Places:
    """The frames of each clip side by side; ``shape``: (clips, frames)."""
    n, frames = shape
    order = np.arange(n) if labels is None else np.argsort(labels, kind="stable")
    beside = 1 if n <= LONG * frames else math.ceil(math.sqrt(n / frames))
    rows: Places = []
    for first in range(0, n, beside):
        row: list[tuple[int, int] | None] = []
        for i in order[first : first + beside]:
            row += [*([None] if row else []), *((int(i), k) for k in range(frames))]
        rows.append(row + [None] * (beside * (frames + 1) - 1 - len(row)))
    return rows


def enlargement(
    rows: Places, picture: Sequence[int], captions: Sequence[str] = (), pages: int = 1
) -> int:
    """The factor to enlarge pictures by; UserError if they would not fit even without."""
    height = len(rows) * (picture[0] + GAP) + GAP
    width = len(rows[0]) * (picture[1] + GAP) + GAP
    wanted = max(1, math.ceil(CELL / picture[0]))
    if captions:
        wanted = max(wanted, math.ceil(LETTERED / _span(rows, picture, 1)))
    for factor in range(wanted, 0, -1):
        beneath = len(rows) * _lines(rows, picture, captions, factor) * LINE
        sides = (height * factor + beneath, width * factor)
        if max(sides) <= MOST_SIDE and math.prod(sides) * pages <= MOST_PIXELS:
            return factor
    raise UserError(
        f"{sum(p is not None for row in rows for p in row)} pictures of {picture[0]} x {picture[1]} "
        f"make one of {sides[0]} x {sides[1]} pixels{f' and {pages} frames' if pages > 1 else ''}; at "
        f"most {MOST_SIDE} a side and {MOST_PIXELS} in all can be drawn: ask for fewer, or write an "
        ".npz file"
    )


def tile(clips: Clips, rows: Places, captions: Sequence[str] = (), pages: int = 1) -> Picture:
    """Pictures of one size on a grey ground, enlarged; None leaves a place empty."""
    height, width, channels = picture = clips.shape[2:]
    factor = enlargement(rows, picture, captions, pages)
    y, x = height + GAP, width + GAP
    canvas = np.full((len(rows) * y + GAP, len(rows[0]) * x + GAP, channels), GREY, np.uint8)
    for r, row in enumerate(rows):
        for k, place in enumerate(row):
            if place is not None:
                canvas[r * y + GAP : (r + 1) * y, k * x + GAP : (k + 1) * x] = clips[place]
    canvas = canvas.repeat(factor, axis=0).repeat(factor, axis=1)
    lines = _lines(rows, picture, captions, factor)
    if not lines:
        return canvas
    span, parts = _span(rows, picture, factor), []
    for r, row in enumerate(rows):
        strip = Image.new("L", (canvas.shape[1], lines * LINE), GREY)
        for k, place in enumerate(row):
            if place is not None and place[1] == 0:
                text = "\n".join(wrapped(captions[place[0]], span))
                at = ((k * x + GAP) * factor, 0)
                ImageDraw.Draw(strip).multiline_text(at, text, WHITE, font=_font(), spacing=1)
        letters = np.asarray(strip)[..., None].repeat(channels, axis=2)
        parts += [canvas[r * y * factor : (r + 1) * y * factor], letters]
    return np.concatenate([*parts, canvas[len(rows) * y * factor :]])


def _span(rows: Places, picture: Sequence[int], factor: int) -> int:
    """The pixels beneath the frames of one clip, side by side."""
    frames = 1 + max(place[1] for row in rows for place in row if place is not None)
    return (frames * (picture[1] + GAP) - GAP) * factor


def _lines(rows: Places, picture: Sequence[int], captions: Sequence[str], factor: int) -> int:
    """How many lines there are beneath each row."""
    span = _span(rows, picture, factor) if captions else 0
    return max((len(wrapped(text, span)) for text in dict.fromkeys(captions)), default=0)


@functools.cache
def _font() -> Any:
    """DejaVu Sans, which has the letters of many scripts and comes with Matplotlib."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", LETTERS)


@functools.lru_cache(4096)
def wrapped(text: str, span: int) -> tuple[str, ...]:
    """``text`` in lines of at most ``span`` pixels, broken between words where it can be.

    What is left after the last line that is shown becomes an ellipsis.
    """
    text = " ".join(text.encode(errors="replace").decode().split())
    lines: list[str] = []
    while text:
        fit = 1
        while fit < len(text) and _font().getlength(text[: fit + 1]) <= span:
            fit += 1
        if fit < len(text) and len(lines) == LINES - 1:
            return (*lines, text[: max(0, fit - 1)] + "…")
        space = text.rfind(" ", 0, fit + 1)
        cut = fit if fit == len(text) or space < 1 else space
        lines.append(text[:cut])
        text = text[cut:].lstrip()
    return tuple(lines)
