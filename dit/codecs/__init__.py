"""Codecs: what turns data into what the model sees, and back.

Each owns its scale and shift. ``encode`` and ``decode`` are JAX functions that run inside the jitted
step, so a batch travels to the device as the source keeps it (uint8 pixels, say).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array

from dit.types import Video

Shape = tuple[int, ...]  # (f, h, w, c)


@dataclasses.dataclass(frozen=True)
class Codec:
    """``encode(x) -> latents``, float ``(b, f, h, w, c)``; ``decode`` back; ``shape`` of the latents.

    ``pixels``: ``decode`` gives colours in [-1, 1] that can be drawn. False where the data are
    themselves latents, which need a decoder from elsewhere to be looked at.
    """

    encode: Callable[[Array], Video]
    decode: Callable[[Video], Video]
    shape: Callable[[Shape], Shape]
    pixels: bool = True
