"""Latents of clips by Wan's causal video autoencoders, 2.1's and 2.2's, or one trained here.

Clips (uint8) of ``1 + 4k`` frames are encoded within the step, and each visit draws another latent from
the encoder's Gaussian; an image is a clip of one frame. Latents that were encoded beforehand (floating
point, of the same autoencoder, unscaled) are only scaled. To the model go ``(z - mean) / std`` of each
channel. In chunks (``chunk``) and tiles (``tile``) memory grows neither with the length nor the size.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import models, rng
from dit.codecs import Codec, Shape, autoencoder_chunks, autoencoder_tiles, gaussian
from dit.codecs.autoencoder_kl import Rule, scaled, unscaled
from dit.codecs.autoencoder_weights import (
    Opened,
    described,
    files_at,
    from_workdir,
    is_workdir,
    weights_of,
)
from dit.interop import diffusers_wan_vae, wan_vae, wan_vae_original
from dit.interop.wan_vae_latents import PUBLISHED, check, statistics
from dit.models.wan_vae import build as build_model
from dit.types import Count, Number, Params, UserError, Video, Weights


def build(
    *,
    path: str | None = None,
    size: str | None = None,
    mean: tuple[Number, ...] | None = None,
    std: tuple[Number, ...] | None = None,
    which: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    chunk: Count | None = None,
    tile: Count | None = None,
) -> Codec:
    """The codec of the weights at ``path``, or of random ones of a published ``size``.

    ``path``: a directory as ``diffusers`` saves it (or with such a one named ``vae`` in it), a file of
    weights, the authors' too, or the workdir of an autoencoder that was trained here, of which ``which``
    chooses the parameters, as for ``init_from``. ``size``: ``Wan2.1`` or ``Wan2.2``, in place of it, to
    try out what speed and memory a program will have. ``mean``, ``std``: of each channel of the latents,
    by default those of ``config.json``, or those published. ``dtype``: of the products; None: float32,
    or in a config what ``precision`` says.
    ``chunk``: clips are taken in parts of so many frames of latents, with the same result; None: whole.
    ``tile``: larger latents are decoded in tiles of so many a side, which overlap by a quarter.

    Raises UserError for weights of another kind, and where nothing says how latents are scaled.
    """
    if (path is None) == (size is None):
        raise UserError(
            "expected either codec.path, of weights, or codec.size, Wan2.1 or Wan2.2, for random ones"
        )
    if size is not None:
        found = at_random(size, dtype or "float32")
    else:
        found = open_weights(path, dtype=dtype or "float32", which=which)
    model, rule = found.model, choose(found, mean, std)
    few, stride = 2**model.halvings, model.stride
    if tile is not None and tile < 4:
        raise UserError(f"got tile={tile}; expected 4 latents or more a side")

    def see(x: Array) -> Video:
        return x.astype(jnp.float32) / 127.5 - 1

    def moments(params: Params, x: Array) -> tuple[Video, Video]:
        own = params["network"]
        if chunk is None:
            found = model.apply({"params": own}, see(x), method="encode")
        else:
            found = autoencoder_chunks.encode(model, own, x, chunk, see)
        return found[0], jnp.exp(0.5 * found[1])

    def run(params: Params, z: Video) -> Any:
        own = params["network"]
        if chunk is None:
            return model.apply({"params": own}, z, method="decode")
        return autoencoder_chunks.decode(model, own, z, chunk)

    def decode(params: Params, z: Video) -> Float[Array, "b f2 h2 w2 d"]:
        z = unscaled(rule, params, z)
        if tile is None or max(z.shape[2:4]) <= tile:
            x = run(params, z)
        else:
            x = autoencoder_tiles.decode(lambda z: run(params, z), z, tile, few)
        return jnp.clip(x, -1, 1)

    def encoded_shape(shape: Shape) -> Shape:
        f, h, w, c = shape
        if gaussian.are_latents(model, c):
            return tuple(shape)
        if c != model.in_channels or h % few or w % few:
            raise UserError(
                f"got examples of shape {tuple(shape)} for this autoencoder; expected "
                f"{model.in_channels} channels (or {model.latent_channels}, of latents) and sides that "
                f"{few} divides"
            )
        model.check_frames(f)
        return (1 + (f - 1) // stride, h // few, w // few, model.latent_channels)

    def decoded_shape(shape: Shape) -> Shape:
        f, h, w, _ = shape
        return (1 + (f - 1) * stride, h * few, w * few, model.out_channels)

    encode = gaussian.encoder("wan_vae", model, moments, lambda params, z: scaled(rule, params, z))
    weights = found.weights
    return Codec(encode, decode, encoded_shape, decoded_shape, weights=weights, moments=moments)


def open_weights(path: str, *, dtype: str = "float32", which: str | None = None) -> Opened:
    """The autoencoder at ``path``: a directory, a file or a workdir; see ``build``.

    Raises UserError for what is none of them, and for files that do not go together.
    """
    if is_workdir(path):
        return from_workdir(path, dtype, which, "wan_vae")
    state, settings = files_at(path, which)
    diffusers_wan_vae.check_settings(settings)
    original = f"encoder.{wan_vae_original.NAMES.embed}.weight" in state
    names = (wan_vae_original if original else diffusers_wan_vae).NAMES
    model = wan_vae.describe(state, names, settings, dtype=dtype)
    weights = weights_of(model, state, list(wan_vae.entries(model, names)), path)
    told = statistics(model, settings)
    return Opened(model, weights) if told is None else Opened(model, weights, **rule_of(*told))


def at_random(size: str, dtype: str) -> Opened:
    """An autoencoder of a published size that nobody has trained."""
    model = build_model(size=size, dtype=dtype)
    abstract, axes = described(model)
    shape = (1, 2**model.halvings, 2**model.halvings, model.in_channels)

    def load(shardings: Any) -> Params:
        def make(key):
            return {"network": models.init(model, key, shape)}

        return jax.jit(make, out_shardings=shardings)(rng.root(0))

    weights = Weights(abstract, axes, load, f"random weights of {size}")
    return Opened(model, weights, **rule_of(*PUBLISHED[size]))


def rule_of(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """The scale and shift that subtract the mean and divide by the standard deviation."""
    return {"scale": tuple(1 / s for s in std), "shift": tuple(mean)}


def choose(found: Opened, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Rule:
    """The rule that the keywords, or else the files, give."""
    if (mean is None) != (std is None):
        raise UserError("got one of codec.mean and codec.std; expected both or neither")
    if mean is not None:
        for name, values in (("mean", mean), ("std", std)):
            check(values, found.model.latent_channels, f"got codec.{name}={values}")
        if min(std) <= 0:
            raise UserError(f"got codec.std={std}; expected positive numbers")
        return Rule(**rule_of(mean, std))
    if found.scale is None:
        raise UserError(
            "nothing beside the weights says how their latents are scaled; give codec.mean and "
            f"codec.std, {found.model.latent_channels} numbers each"
        )
    return Rule(found.scale, found.shift)
