"""Centre crop and resize of images of any size to a square, as ADM prepares ImageNet.

Halve with a box filter while the shorter side is at least twice ``size``, scale it to ``size`` with a
bicubic filter, cut out the middle (Dhariwal & Nichol 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image


LONG = 16  # aspect ratio beyond which only the middle is scaled


def square(image: Image, size: int) -> UInt8[np.ndarray, "h w c"]:
    """The middle ``size x size`` of a Pillow image, after scaling its shorter side to ``size``.

    A picture of 20,000 x 1 pixels would grow to gigabytes. So of one that is ``LONG`` only what is left
    of it is computed; the same but for rounding between the two passes of the filter.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    right, bottom = left + size, top + size
    if max(image.size) > LONG * min(image.size):
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, right * x, bottom * y)
        image = image.resize((size, size), Resampling.BICUBIC, box=box)
    else:
        image = image.resize((width, height), Resampling.BICUBIC).crop((left, top, right, bottom))
    return np.asarray(image).reshape(size, size, -1)
