"""What codecs by an autoencoder share: pixels are encoded and drawn, latents are only scaled."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import rng
from dit.codecs import Encode, Moments
from dit.models import Network
from dit.types import Ids, Key, Params, UserError, Video


def are_latents(model: Network, channels: int) -> bool:
    """Whether data of so many channels are latents; where pixels have as many, they are pixels."""
    return channels == model.latent_channels != model.in_channels


def encoder(
    name: str, model: Network, moments: Moments, scaled: Callable[[Params, Video], Video]
) -> Encode:
    """``encode`` of the codec ``name``: ``scaled(params, z)`` of a draw from the encoder's Gaussian.

    The mean without a key, and for floating point data, which are latents. UserError for other types.
    """

    def encode(
        params: Params, x: Array, key: Key | None = None, ids: Ids | None = None
    ) -> Float[Array, "b f2 h2 w2 d"]:
        std = None
        if x.dtype == jnp.uint8:
            mean, std = moments(params, x)
        elif jnp.issubdtype(x.dtype, jnp.floating) and are_latents(model, x.shape[-1]):
            mean = x.astype(jnp.float32)
        else:
            kept = model.latent_channels
            latents = f", or its own latents, floating point with {kept}"
            if kept == model.in_channels:
                latents = "; its latents have as many channels, and are not taken for data"
            raise UserError(
                f"codec {name!r} got {x.dtype} data with {x.shape[-1]} channels; expected "
                f"uint8 pixels with {model.in_channels}{latents}"
            )
        if std is not None and key is not None:
            keys = rng.per_sample(rng.stream(key, "posterior"), ids)
            mean = mean + std * rng.normal(keys, mean.shape[1:], mean.dtype)
        return scaled(params, mean)

    return encode
