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
    """The middle ``size x size`` of a Pillow image, after scaling its shorter side to ``size``.

    Of the scaled image only the middle is computed: that of a picture of 20,000 x 1 pixels would be
    20,000 times as wide as high.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    scaled = [max(size, round(side * scale)) for side in image.size]
    first = [(side - size) // 2 for side in scaled]
    left, top, right, bottom = (
        at * side / whole
        for edge in (0, size)
        for at, side, whole in zip([f + edge for f in first], image.size, scaled, strict=True)
    )
    image = image.resize((size, size), Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(image).reshape(size, size, -1)
