"""Pictures from files of many kinds, as uint8 grey or RGB, never silently wrong.

- 16-bit grey values are scaled to 8 bits. 32-bit integers and floating point numbers do not say what is
  white, so they are refused.
- What is transparent shows a white ground. The colours that hide below it would be noise.
- A picture is turned upright as its EXIF orientation says. EXIF that cannot be read says nothing.
- Of an animation or a document, the first page is read.

Whatever is wrong with a file, the error names it.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8, UInt16

from dit.data.resize import fill
from dit.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}  # by the number of channels
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000")
FORMATS = (*FORMATS, "PPM", "TGA", "QOI", "PCX")
GROUND = 255
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # its values, and what turns the picture upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
LYING = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")  # height and width change places


def read(path: str, height: int, width: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """The picture in a file, upright, resized and cropped to ``height x width``.

    Raises UserError, naming the file, for one that is damaged or cannot be shown in 8 bits.
    """
    with opened(path) as image:
        return fill(upright(image, channels), height, width)


def upright(image: Image, channels: int) -> Image:
    """The whole of an opened picture in 8 bits, grey or RGB, turned as its EXIF orientation says."""
    from PIL import Image

    image.load()  # which turns TIFFs
    turn = _turn(image)
    picture = flat(image, channels)
    return picture if turn is None else picture.transpose(Image.Transpose[turn])


def upright_size(path: str) -> tuple[int, int]:
    """Height and width of the picture in a file once it is upright, from its header alone.

    Raises UserError, naming the file, for one that cannot be read.
    """
    with opened(path) as image:
        width, height = image.size
        return (width, height) if _turn(image) in LYING else (height, width)


@contextlib.contextmanager
def opened(path: str, file: io.BufferedIOBase | None = None) -> Iterator[Image]:
    """The picture in a file; whatever goes wrong with it inside becomes a UserError that names it.

    ``file``: what to read it from, if it is not in a file of its own.
    """
    from PIL import Image

    try:
        with Image.open(path if file is None else file, formats=_formats()) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        what = str(error) or type(error).__name__
        raise UserError(
            f"cannot read the picture {path!r} ({what}): repair it or take it out of the data"
        ) from error


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of files that can be read, such as ``.png``."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in _formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that the installed Pillow decodes: a build may leave some out."""
    from PIL import Image, features

    Image.init()
    needs = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}
    there = (f for f in FORMATS if f in Image.OPEN)
    return tuple(f for f in there if f not in needs or features.check(needs[f]))


def flat(image: Image, channels: int) -> Image:
    """The picture in 8 bits, grey or RGB, without transparency; ValueError if that is ambiguous."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating point numbers" if image.mode == "F" else "32-bit integers"
        raise ValueError(
            f"its pixels are {kind}, which do not say what is white; expected 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint16)  # what PNG and PPM hold
        image = Image.fromarray(scaled(values, image.info.get("transparency")))
    elif image.has_transparency_data:
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        over = image.convert(plain).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (GROUND,) * 4), over)
    return image.convert(MODES[channels])


def drawn(x: np.ndarray, channels: int) -> Image:
    """Pixels ``(h, w)`` or ``(h, w, c)`` of 8 or 16 bits as a flat picture; ValueError for others."""
    from PIL import Image

    x = x[..., None] if x.ndim == 2 else x
    if (
        x.dtype not in (np.uint8, np.uint16)
        or x.ndim != 3
        or x.shape[-1] not in (1, 3, 4)
        or not x.size
    ):
        bad = x.dtype.kind == "f" and not np.isfinite(x).all()
        raise ValueError(
            f"it is {x.dtype} {x.shape}{' with NaN or infinite values' if bad else ''}; expected 8 or "
            "16 bits and (height, width, 1, 3 or 4)"
        )
    x = scaled(x) if x.dtype == np.uint16 else x
    return flat(Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x), channels)


def scaled(
    values: UInt16[np.ndarray, "*shape"], clear: int | None = None
) -> UInt8[np.ndarray, "*shape"]:
    """16 bits to 8, rounded to nearest, so that white is white. ``clear``: the transparent value."""
    eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return eight if clear is None else np.where(values == clear, np.uint8(GROUND), eight)


def _turn(image: Image) -> str | None:
    """The name of the transposition that turns the picture upright, if it needs one."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged EXIF may raise anything
        return None
