"""Pixels as they are: uint8 ``0..255`` to floating point ``[-scale, scale]`` and back to ``[-1, 1]``."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.codecs import Codec
from dit.types import Ids, Key, Params, Positive, UserError, Video


def build(*, scale: Positive = 1.0) -> Codec:
    """``encode(x) = scale (x / 127.5 - 1)``; ``decode`` divides by ``scale`` and clips to [-1, 1].

    ``scale`` sets the size of the data against unit noise (0.5 is EDM's sigma_data).
    """
    if scale <= 0:
        raise UserError(f"got scale={scale}; expected a positive number")

    def encode(
        params: Params, x: Array, key: Key | None = None, ids: Ids | None = None
    ) -> Float[Array, "b ..."]:
        if x.dtype != jnp.uint8:
            raise UserError(f"the pixel codec got {x.dtype} data; expected uint8 pixels in 0..255")
        return scale * (x.astype(jnp.result_type(float)) / 127.5 - 1)

    def decode(params: Params, z: Video) -> Video:
        return jnp.clip(z / scale, -1, 1)

    return Codec(encode, decode, elementwise=True)
