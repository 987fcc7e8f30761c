"""Latents of a pretrained autoencoder: Stable Diffusion's, SDXL's, SD3's, FLUX.1's and FLUX.2's.

Pictures (uint8) are encoded within the step, and each visit draws another latent from the encoder's
Gaussian. Latents that were encoded beforehand (floating point, of the same autoencoder, unscaled) are
only scaled. To the model go ``(z - shift) scale``; FLUX.2's latents are packed first, each 2x2 of them
into one with four times the channels, and normalised by running statistics that lie beside the weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.codecs import Codec, Shape, autoencoder_tiles, gaussian
from dit.codecs.autoencoder_weights import Opened, open_weights
from dit.models.autoencoder import AutoencoderKL
from dit.types import Count, Number, Params, Positive, UserError, Video

EPS = 1e-4  # of FLUX.2's statistics
PACK = 2  # latents a side that FLUX.2 packs into one


@dataclasses.dataclass(frozen=True)
class Rule:
    """How latents become what the model sees: ``(z - shift) scale``, or packed and normalised."""

    scale: float | tuple[float, ...] = 1.0  # or one a channel
    shift: float | tuple[float, ...] = 0.0
    packed: bool = False


FAMILIES = {
    "sd": Rule(0.18215),
    "sdxl": Rule(0.13025),
    "sd3": Rule(1.5305, 0.0609),
    "flux": Rule(0.3611, 0.1159),
    "flux2": Rule(packed=True),
}


def build(
    *,
    path: str,
    family: Literal["sd", "sdxl", "sd3", "flux", "flux2"] | None = None,
    scale: Positive | None = None,
    shift: Number | None = None,
    which: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    tile: Count | None = None,
) -> Codec:
    """The codec of the weights at ``path``.

    ``path``: a directory as ``diffusers`` saves it (or with such a one named ``vae`` in it), a file of
    weights, or the workdir of an autoencoder that was trained here, of which ``which`` chooses the
    parameters, as for ``init_from``. The rule is that of ``family``, or of ``scale`` and ``shift``, or
    by default of the ``config.json`` beside the weights. ``dtype``: of the products; None: float32,
    or in a config what ``precision`` says.
    ``tile``: larger latents are decoded in tiles of so many a side, which overlap by a quarter.

    Raises UserError for weights of another kind, and where nothing says how latents are scaled.
    """
    found = open_weights(path, dtype=dtype or "float32", which=which)
    rule = choose(found, family, scale, shift)
    model = found.model
    if rule.packed and not found.statistics:
        raise UserError(
            f"the weights in {path!r} lack the statistics of their latents (bn.running_mean, "
            "bn.running_var), by which FLUX.2 scales; expected an autoencoder of that family"
        )
    few = 2**model.halvings
    if tile is not None and tile < 4:
        raise UserError(f"got tile={tile}; expected 4 latents or more a side")

    def apply(params: Params, x: Array, method: str) -> Any:
        return model.apply({"params": params["network"]}, x, method=method)

    def moments(params: Params, x: Array) -> tuple[Video, Video]:
        mean, logvar = apply(params, x.astype(jnp.float32) / 127.5 - 1, "encode")
        return mean, jnp.exp(0.5 * logvar)

    encode = gaussian.encoder(
        "autoencoder_kl", model, moments, lambda params, z: scaled(rule, params, z)
    )

    def decode(params: Params, z: Video) -> Float[Array, "b f h2 w2 d"]:
        z = unscaled(rule, params, z)
        if tile is None or max(z.shape[2:4]) <= tile:
            x = apply(params, z, "decode")
        else:
            x = autoencoder_tiles.decode(lambda z: apply(params, z, "decode"), z, tile, few)
        return jnp.clip(x, -1, 1)

    def encoded_shape(shape: Shape) -> Shape:
        f, h, w, c = shape
        if not gaussian.are_latents(model, c):
            check_pixels(model, shape, rule)
            h, w = h // few, w // few
        return packed_shape((f, h, w, model.latent_channels), rule)

    def decoded_shape(shape: Shape) -> Shape:
        f, h, w, _ = shape
        side = few * (PACK if rule.packed else 1)
        return (f, h * side, w * side, model.out_channels)

    weights = found.weights
    return Codec(encode, decode, encoded_shape, decoded_shape, weights=weights, moments=moments)


def choose(found: Opened, family: str | None, scale: float | None, shift: float | None) -> Rule:
    """The rule that the keywords, or else the files, give."""
    if scale is not None or shift is not None:
        if family is not None:
            raise UserError(
                f"got codec.family={family!r} and a scale or shift of its own; give one of them"
            )
        return Rule(1.0 if scale is None else scale, 0.0 if shift is None else shift)
    if family is not None:
        return FAMILIES[family]
    if found.statistics:
        return FAMILIES["flux2"]
    if found.scale is None:
        raise UserError(
            "nothing beside the weights says how their latents are scaled; give codec.family, one of "
            f"{', '.join(FAMILIES)}, or codec.scale (and shift)"
        )
    return Rule(found.scale, found.shift)


def check_pixels(model: AutoencoderKL, shape: Shape, rule: Rule) -> None:
    """Raise UserError for pictures that cannot be encoded."""
    side = 2**model.halvings * (PACK if rule.packed else 1)
    if shape[-1] != model.in_channels or shape[1] % side or shape[2] % side:
        raise UserError(
            f"got examples of shape {tuple(shape)} for this autoencoder; expected {model.in_channels} "
            f"channels (or {model.latent_channels}, of latents) and sides that {side} divides"
        )


def packed_shape(shape: Shape, rule: Rule) -> Shape:
    """The shape of latents as the model sees them."""
    if not rule.packed:
        return shape
    f, h, w, c = shape
    if h % PACK or w % PACK:
        raise UserError(f"got latents of {h}x{w}, which are packed 2x2; expected even sides")
    return (f, h // PACK, w // PACK, c * PACK**2)


def scaled(rule: Rule, params: Params, z: Video) -> Float[Array, "b f h2 w2 d"]:
    """What the model sees of latents."""
    if not rule.packed:
        return (z - along(rule.shift)) * along(rule.scale)
    b, f, h, w, c = z.shape
    z = z.reshape(b, f, h // PACK, PACK, w // PACK, PACK, c)
    z = z.transpose(0, 1, 2, 4, 6, 3, 5)  # b f h2 w2 c p q: channels first, as there
    z = z.reshape(b, f, h // PACK, w // PACK, c * PACK**2)
    mean, variance = map(along, statistics(params))
    return (z - mean) * jax.lax.rsqrt(variance + EPS)


def unscaled(rule: Rule, params: Params, z: Video) -> Float[Array, "b f h2 w2 d"]:
    """The latents of what the model sees."""
    if not rule.packed:
        return z / along(rule.scale) + along(rule.shift)
    mean, variance = map(along, statistics(params))
    z = z * jnp.sqrt(variance + EPS) + mean
    b, f, h, w, c = z.shape
    z = z.reshape(b, f, h, w, c // PACK**2, PACK, PACK).transpose(0, 1, 2, 5, 3, 6, 4)
    return z.reshape(b, f, h * PACK, w * PACK, c // PACK**2)


def along(x: Any) -> Float[Array, "1 1 1 1 _"]:
    """A number, or one a channel, to broadcast against latents."""
    return jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 1, -1)


def statistics(params: Params) -> tuple[Any, Any]:
    """The mean and variance of every channel of packed latents."""
    return params["statistics"]["mean"], params["statistics"]["variance"]
