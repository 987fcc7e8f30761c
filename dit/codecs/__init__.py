"""Codecs turn data into what the model sees, and back.

Each owns its scale and shift. ``encode`` and ``decode`` are JAX functions that run inside the jitted
step, so a batch travels to the device in the source's own type (uint8 for pixels).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array

from dit.types import Video

Shape = tuple[int, ...]  # (f, h, w, c)


@dataclasses.dataclass(frozen=True)
class Codec:
    """``encode(x) -> latents``, float ``(b, f, h, w, c)``; ``decode`` back; ``encoded_shape(shape)``.

    ``pixels``: ``decode`` gives colours in [-1, 1] that can be drawn. False where the data are
    themselves latents, which only the autoencoder that made them can decode.
    """

    encode: Callable[[Array], Video]
    decode: Callable[[Video], Video]
    encoded_shape: Callable[[Shape], Shape]
    pixels: bool = True
