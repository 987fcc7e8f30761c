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


def square(image: Image, size: int) -> UInt8[np.ndarray, "h w c"]:
    """The middle ``size x size`` of a Pillow image, after scaling its shorter side to ``size``."""
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels.reshape(size, size, -1)
