"""The autoencoder of latent diffusion: pictures to a Gaussian over a few channels, and back.

This is the ``AutoencoderKL`` of Stable Diffusion 1, 2 and XL (Rombach et al. 2022, appendix G), SD3,
FLUX.1 and FLUX.2, which differ in widths, latent channels and whether there are 1x1 convolutions around
the latents. Encoder and decoder are U-Nets without skip connections or a condition: residual blocks at
falling and rising resolution, with attention of one head over all pixels in the middle, and in levels
that are told to have it (VA-VAE). Each frame of a clip is a picture of its own. A codec scales the
latents (``dit/codecs/autoencoder_kl.py``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import config
from dit.models import attention as attention_module
from dit.models import condition as condition_module
from dit.models.activations import constrain
from dit.models.dit import DTYPES
from dit.models.layers import Linear, wide
from dit.models.network import Level, Network, Shape
from dit.models.remat import POLICIES, check_remat
from dit.models.unet_blocks import (
    PIXELS,
    Conv,
    GroupNorm,
    Layer,
    Style,
    fold,
    match_channels,
    unfold,
)
from dit.models.unet_layers import LayerModule, layer_macs
from dit.types import Cond, Count, Tiny, UserError, Whole

LOGVAR = (-30.0, 20.0)  # bounds of the log-variance
LOGVAR_AT_FIRST = -6.0  # added where there are shortcuts: noise must not drown what they pass on


class Half(nn.Module):
    """The encoder or the decoder: a convolution, the layers, a norm and a convolution.

    With ``shortcuts`` there is a path from end to end that no norm is on. ``moments``: its outputs are
    means and log-variances.
    """

    layers: tuple[Layer, ...]
    outputs: int
    style: Style
    remat: str
    shortcuts: bool = False
    moments: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 d"]:
        style, module = self.style, LayerModule
        if self.remat != "none":
            module = nn.remat(LayerModule, policy=POLICIES[self.remat])
        h = Conv(self.layers[0].inputs, ("patch", "embed"), style.dtype, name="embed")(x)
        if self.shortcuts:
            h = h + match_channels(x, h.shape[-1])
        h = constrain(h, *PIXELS)
        for layer in self.layers:
            h = module(layer, style, name=layer.name)(h)
        kept = h
        h = nn.silu(GroupNorm(style.groups, style.eps, name="norm")(h))
        h = Conv(self.outputs, ("embed", "patch"), style.dtype, name="final")(h)
        if self.shortcuts:  # of moments to the mean
            kept = match_channels(kept, self.outputs // (1 + self.moments))
            no = jnp.full_like(kept, LOGVAR_AT_FIRST)
            h = h + (jnp.concatenate([kept, no], axis=-1) if self.moments else kept)
        return h


class AutoencoderKL(Network):
    """A description of the network (hashable, no arrays). Made and checked by ``build``.

    As a network from data to data it decodes the mean, whatever the time. ``encode`` and ``decode`` are
    its two halves: ``model.apply({"params": params}, x, method="encode")``.
    """

    encoder_layers: tuple[Layer, ...]
    decoder_layers: tuple[Layer, ...]
    style: Style
    in_channels: int
    out_channels: int
    latent_channels: int
    quant_conv: bool
    post_quant_conv: bool
    remat: str
    patch: int = 1
    shortcuts: bool = False

    @property
    def dtype(self) -> str:
        """The type in which convolutions and products are computed."""
        return self.style.dtype

    @property
    def halvings(self) -> int:
        """How often height and width are halved."""
        return max(layer.level for layer in self.encoder_layers)

    def setup(self):
        moments, how = 2 * self.latent_channels, (self.style, self.remat)
        outputs = self.out_channels * self.patch**2
        self.encoder = Half(self.encoder_layers, moments, *how, self.shortcuts, moments=True)
        self.decoder = Half(self.decoder_layers, outputs, *how, self.shortcuts)
        axes = ("patch", "patch")
        if self.quant_conv:
            self.quant = Linear((moments,), axes, self.dtype)
        if self.post_quant_conv:
            self.post_quant = Linear((self.latent_channels,), axes, self.dtype)

    def __call__(
        self, x: Float[Array, "b f h w c"], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w d"]:
        """Decodes the mean. UserError for shapes that do not fit and for a condition."""
        given = [name for name, value in vars(cond).items() if value is not None and name != "drop"]
        if given:
            raise UserError(f"got {', '.join(given)} for an autoencoder, which takes no condition")
        return self.decode(self.encode(x)[0])

    def encode(
        self, x: Float[Array, "b f h w c"]
    ) -> tuple[Float[Array, "b f h2 w2 z"], Float[Array, "b f h2 w2 z"]]:
        """Mean and log-variance, clamped to ``LOGVAR``, of the latents of pictures in [-1, 1].

        Height and width are ``2 ** halvings`` times smaller; UserError where they do not divide.
        """
        condition_module.check_data(self, x)
        if any(side % 2**self.halvings for side in x.shape[2:4]):
            raise UserError(
                f"got frames of {x.shape[2]}x{x.shape[3]}; this autoencoder halves them "
                f"{self.halvings} times: give sides that {2**self.halvings} divides"
            )
        h = self.encoder(fold(x, self.patch) if self.patch > 1 else x)
        h = self.quant(h) if self.quant_conv else h
        mean, logvar = jnp.split(h.astype(wide(self.dtype)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR)

    def decode(self, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 d"]:
        """Pictures from latents as ``encode`` gives them; they may leave [-1, 1] a little."""
        if z.ndim != 5 or z.shape[-1] != self.latent_channels:
            raise UserError(
                f"got latents of shape {z.shape}; expected (batch, frames, height, width, "
                f"{self.latent_channels})"
            )
        z = self.post_quant(z) if self.post_quant_conv else z
        x = self.decoder(z).astype(wide(self.dtype))
        return unfold(x, self.patch) if self.patch > 1 else x

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; the layers' parts are of all layers of a half together."""
        pixels, latents = math.prod(shape[:3]), math.prod(shape[:3]) >> 2 * self.halvings
        inner, moments = self.latent_channels, 2 * self.latent_channels
        first, last = self.encoder_layers[0].inputs, self.encoder_layers[-1].outputs
        macs = {
            "embed": 9 * pixels * self.in_channels * first,
            "encoder/final": 9 * latents * last * moments,
            "quant": latents * moments**2 * self.quant_conv,
            "post_quant": latents * inner**2 * self.post_quant_conv,
            "decoder/embed": 9 * latents * inner * self.decoder_layers[0].inputs,
            "decoder/final": 9 * pixels * self.decoder_layers[-1].outputs * self.out_channels,
        }
        for half, layers in self._halves().items():
            for layer in layers:
                for part, count in layer_macs(layer, self.style, shape[:3]).items():
                    macs[f"{half}/{part}"] = macs.get(f"{half}/{part}", 0) + count
        return macs

    def attention_macs(self, shape: Shape) -> int:
        """Every pixel of a level that attends with those of its frame."""
        pixels = math.prod(shape[1:3])
        attending = [x for half in self._halves().values() for x in half if x.heads]
        each = [(pixels >> 2 * x.level_out) ** 2 * x.outputs for x in attending]
        return shape[0] * sum(each) // max(len(each), 1)

    def stream(self, shape: Shape) -> int:
        """What leaves each layer."""
        pixels, layers = math.prod(shape[:3]), self.encoder_layers + self.decoder_layers
        return sum(layer.outputs * (pixels >> 2 * layer.level_out) for layer in layers)

    def plain(self, unrolled: bool = False) -> AutoencoderKL:
        """See ``Network``; the layers differ, so they are never looped over."""
        style = dataclasses.replace(self.style, attention="xla")
        return self.clone(style=style, remat="none")

    @nn.nowrap
    def _halves(self) -> dict[str, tuple[Layer, ...]]:
        return {"encoder": self.encoder_layers, "decoder": self.decoder_layers}


def plan(
    widths: tuple[int, ...],
    decoder_widths: tuple[int, ...],
    depth: int,
    attend: bool,
    base: int = 0,
    shortcuts: bool = False,
    levels: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """The layers of the encoder and of the decoder, of so many channels from the finest level on.

    ``depth``: residual blocks a level, one more in the decoder; ``attend``: in the middle. ``base``: how
    often pixels were halved before the finest level. ``levels``: those of each half that attend after
    every residual block.
    """
    last = len(widths) - 1

    def middle(channels: int) -> list[Layer]:
        return [
            Layer("middle_0", base + last, channels, channels, heads=int(attend)),
            Layer("middle_1", base + last, channels, channels),
        ]

    encoder, channels = [], widths[0]
    for level, width in enumerate(widths):
        for i in range(depth):
            heads = int(level in levels[0])
            encoder.append(Layer(f"down_{level}_{i}", base + level, channels, width, heads=heads))
            channels = width
        if level < last:
            halve = {"resample": "down", "kind": "conv", "shortcut": shortcuts}
            encoder.append(Layer(f"down_{level}_halve", base + level, width, width, **halve))
    encoder += middle(channels)
    channels = decoder_widths[-1]
    decoder = middle(channels)
    for level, width in reversed(list(enumerate(decoder_widths))):
        for i in range(depth + 1):
            heads = int(level in levels[1])
            decoder.append(Layer(f"up_{level}_{i}", base + level, channels, width, heads=heads))
            channels = width
        if level:
            double = {"resample": "up", "kind": "conv", "shortcut": shortcuts}
            decoder.append(Layer(f"up_{level}_double", base + level, width, width, **double))
    return tuple(encoder), tuple(decoder)


def make(
    *,
    widths: tuple[Count, ...],
    decoder_widths: tuple[Count, ...] | None = None,
    depth: Count = 2,
    latent_channels: Count = 4,
    in_channels: Count = 3,
    out_channels: Count | None = None,
    quant_conv: bool = True,
    post_quant_conv: bool = True,
    middle_attention: bool = True,
    attention_levels: tuple[Whole, ...] = (),
    decoder_attention_levels: tuple[Whole, ...] | None = None,
    patch: Literal[1, 2, 4] = 1,
    shortcuts: bool = False,
    norm_groups: Count = 32,
    norm_eps: Tiny = 1e-6,
    remat: str = "none",
    dtype: str = "float32",
    attention: str = "auto",
) -> AutoencoderKL:
    """As ``build``, with the channels of each level as they are: ``widths``, the finest level first."""
    decoder_widths = decoder_widths or widths
    if len(decoder_widths) != len(widths) or not widths:
        raise UserError(
            f"got {len(widths)} widths and {len(decoder_widths)} of the decoder; expected one a level"
        )
    odd = [width for width in widths + decoder_widths if width % norm_groups]
    if odd:
        raise UserError(
            f"got a level of {odd[0]} channels; expected a multiple of norm_groups={norm_groups}"
        )
    if dtype not in DTYPES:
        raise UserError(f"got dtype={dtype!r}: {config.suggest(dtype, list(DTYPES))}")
    check_remat(remat)
    attention_module.check(attention)
    if decoder_attention_levels is None:
        decoder_attention_levels = attention_levels
    levels = tuple(attention_levels), tuple(decoder_attention_levels)
    beyond = [level for half in levels for level in half if level >= len(widths)]
    if beyond:
        raise UserError(
            f"got attention at level {beyond[0]}; expected levels 0 to {len(widths) - 1}"
        )
    if shortcuts:
        inputs, outputs = ((n or in_channels) * patch**2 for n in (in_channels, out_channels))
        check_shortcut(inputs, widths[0])
        check_shortcut(widths[-1], latent_channels)
        check_shortcut(latent_channels, decoder_widths[-1])
        check_shortcut(decoder_widths[0], outputs)
    base = patch.bit_length() - 1
    options = (middle_attention, base, shortcuts, levels)
    encoder, decoder = plan(widths, decoder_widths, depth, *options)
    return AutoencoderKL(
        encoder_layers=encoder,
        decoder_layers=decoder,
        style=Style(norm_groups, norm_eps, False, dtype, attention, corner=True),
        in_channels=in_channels,
        out_channels=out_channels or in_channels,
        latent_channels=latent_channels,
        quant_conv=quant_conv,
        post_quant_conv=post_quant_conv,
        remat=remat,
        patch=patch,
        shortcuts=shortcuts,
    )


def check_shortcut(inputs: int, outputs: int) -> None:
    """Raise UserError where neither number of channels is a multiple of the other."""
    if max(inputs, outputs) % min(inputs, outputs):
        raise UserError(
            f"got a shortcut from {inputs} channels to {outputs}; expected one to be a multiple of the "
            "other: change width, multipliers, patch or latent_channels"
        )


def build(
    *,
    width: Count = 128,
    multipliers: tuple[Count, ...] = (1, 2, 4, 4),
    decoder_width: Count | None = None,
    depth: Count = 2,
    latent_channels: Count = 4,
    in_channels: Count,
    out_channels: Count | None = None,
    quant_conv: bool = True,
    post_quant_conv: bool = True,
    middle_attention: bool = True,
    attention_levels: tuple[Whole, ...] = (),
    decoder_attention_levels: tuple[Whole, ...] | None = None,
    patch: Literal[1, 2, 4] = 1,
    shortcuts: bool = False,
    norm_groups: Count = 32,
    norm_eps: Tiny = 1e-6,
    remat: str = "none",
    dtype: str = "float32",
    attention: str = "auto",
) -> AutoencoderKL:
    """An autoencoder; the defaults are Stable Diffusion's: 8 times smaller, with 4 channels.

    ``multipliers``: the channels of each level, in ``width``s (``decoder_width``s in the decoder); each
    level after the first halves height and width. ``depth``: residual blocks a level, one more in the
    decoder. ``quant_conv``, ``post_quant_conv``: the 1x1 convolutions after the encoder and before the
    decoder, which SD3 and FLUX.1 leave out. ``attention_levels``: levels that attend after each residual
    block too, 0 the finest; ``decoder_attention_levels``: those of the decoder, if they are others.
    ``patch``: pixels are folded into channels by so much before the first convolution, as Wan 2.2's are.
    ``shortcuts``: around convolutions that resample, and around the first and the last of each half,
    without parameters (Deep Compression Autoencoder, whose first and last have none): what is smooth
    passes without a norm on its way. ``remat``: a policy of
    ``models/remat.py``, for each layer.

    Raises UserError for numbers that do not fit together.
    """
    return make(
        widths=tuple(width * m for m in multipliers),
        decoder_widths=tuple((decoder_width or width) * m for m in multipliers),
        depth=depth,
        latent_channels=latent_channels,
        in_channels=in_channels,
        out_channels=out_channels,
        quant_conv=quant_conv,
        post_quant_conv=post_quant_conv,
        middle_attention=middle_attention,
        attention_levels=attention_levels,
        decoder_attention_levels=decoder_attention_levels,
        patch=patch,
        shortcuts=shortcuts,
        norm_groups=norm_groups,
        norm_eps=norm_eps,
        remat=remat,
        dtype=dtype,
        attention=attention,
    )
