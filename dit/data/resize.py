"""Resize and centre crop of images of any size to a given one, as ADM prepares ImageNet.

An image is halved with a box filter while both its sides are at least twice the target's, scaled with a
bicubic filter until it just covers the target, and cropped at its centre (Dhariwal & Nichol 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image


LONG = 16  # aspect ratio beyond which only the middle is scaled


def fill(image: Image, height: int, width: int) -> UInt8[np.ndarray, "h w c"]:
    """The middle ``height x width`` of a Pillow image, scaled so that it just covers these.

    A picture of 20,000 x 1 pixels would grow to gigabytes. So of one that is ``LONG``, only the part
    that is not cropped away is computed; it differs by the rounding between the filter's two passes.
    """
    from PIL.Image import Resampling

    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    right, bottom = left + width, top + height
    if max(image.size) > LONG * min(image.size):
        x, y = image.width / wide, image.height / high
        box = (left * x, top * y, right * x, bottom * y)
        image = image.resize((width, height), Resampling.BICUBIC, box=box)
    else:
        image = image.resize((wide, high), Resampling.BICUBIC).crop((left, top, right, bottom))
    return np.asarray(image).reshape(height, width, -1)
