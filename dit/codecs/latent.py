"""Latents that were computed beforehand: shifted and scaled to about unit variance.

``encode(x) = (x - shift) scale``. The default scale is Stable Diffusion's (Rombach et al. 2022), which
DiT uses; SD3's autoencoder has scale 1.5305 and shift 0.0609.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.codecs import Codec
from dit.types import Ids, Key, Number, Params, Positive, UserError, Video


def build(*, scale: Positive = 0.18215, shift: Number = 0.0) -> Codec:
    """``decode`` undoes ``encode`` and gives the autoencoder's own latents, not pixels."""
    if scale <= 0:
        raise UserError(f"got scale={scale}; expected a positive number")

    def encode(
        params: Params, x: Array, key: Key | None = None, ids: Ids | None = None
    ) -> Float[Array, "b ..."]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"the latent codec got {x.dtype} data; expected floating point latents")
        return (x.astype(jnp.result_type(float)) - shift) * scale

    def decode(params: Params, z: Video) -> Video:
        return z / scale + shift

    return Codec(encode, decode, pixels=False, elementwise=True)
