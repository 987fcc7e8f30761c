"""Wan's causal video autoencoder: clips to a Gaussian over few channels and fewer frames, and back.

Wan 2.1's (Wang et al. 2025, section 4.1) makes frames 8 times smaller a side and, but for the first,
4 times fewer: of ``1 + 4k`` frames ``1 + k``, of 16 channels. Wan 2.2's makes them 16 times smaller, of
48 channels: it sees 2x2 pixels as one, and around each level the mean, or copies, of its input are
added. Residual blocks of causal 3x3x3 convolutions fall and rise in resolution, with attention within
frames in the middle. An image is a clip of one frame, and what comes later changes no earlier latent.

A codec scales the latents (``dit/codecs/wan_vae.py``). Qwen-Image's autoencoder is Wan 2.1's.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import config
from dit.models import attention as attention_module
from dit.models import condition as condition_module
from dit.models.activations import constrain
from dit.models.autoencoder import LOGVAR
from dit.models.dit import DTYPES
from dit.models.layers import Linear, Norm, wide
from dit.models.network import Level, Network, Shape
from dit.models.remat import POLICIES, check_remat
from dit.models.unet_blocks import PIXELS
from dit.models.wan_vae_blocks import (
    TAPS,
    TINY,
    CausalConv,
    Middle,
    Stage,
    StageModule,
    Style,
    frames_at,
    middle_macs,
    stage_macs,
)
from dit.models.wan_vae_levels import DEFAULTS, SIZES, check_widths, plan
from dit.types import Cond, Count, UserError


class Half(nn.Module):
    """The encoder or the decoder: a convolution, the levels and the middle, a norm, a convolution."""

    stages: tuple[Stage, ...]
    outputs: int
    style: Style
    remat: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f2 h2 w2 d"]:
        style, module, middle = self.style, StageModule, Middle
        if self.remat != "none":
            how = {"policy": POLICIES[self.remat], "static_argnums": (2,)}
            module, middle = nn.remat(StageModule, **how), nn.remat(Middle, **how)
        up = self.stages[0].name.startswith("up")
        width = self.stages[0].inputs
        h = CausalConv(width, ("patch", "embed"), style.dtype, name="embed")(x, first)
        h = constrain(h, *PIXELS)
        h = middle(style, name="middle")(h, first) if up else h
        for stage in self.stages:
            h = module(stage, style, name=stage.name)(h, first)
        h = h if up else middle(style, name="middle")(h, first)
        h = nn.silu(Norm("rms", affine=True, eps=TINY, name="norm")(h))
        return CausalConv(self.outputs, ("embed", "patch"), style.dtype, name="final")(h, first)


class WanVAE(Network):
    """A description of the network (hashable, no arrays). Made and checked by ``build``.

    As a network from data to data it decodes the mean, whatever the time. ``encode`` and ``decode`` are
    its two halves: ``model.apply({"params": params}, x, method="encode")``. Both take a clip in chunks
    too, as ``codecs/autoencoder_chunks.py`` does.
    """

    encoder_stages: tuple[Stage, ...]
    decoder_stages: tuple[Stage, ...]
    style: Style
    in_channels: int
    out_channels: int
    latent_channels: int
    patch: int
    remat: str

    @property
    def dtype(self) -> str:
        """The type in which convolutions and products are computed."""
        return self.style.dtype

    @property
    def halvings(self) -> int:
        """How often height and width are halved."""
        return len(self.encoder_stages) - 1 + self.patch.bit_length() - 1

    @property
    def stride(self) -> int:
        """Of how many frames, after the first, one frame of latents is made."""
        return 2 ** sum(stage.temporal for stage in self.encoder_stages)

    def setup(self):
        moments, how = 2 * self.latent_channels, (self.style, self.remat)
        self.encoder = Half(self.encoder_stages, moments, *how)
        self.decoder = Half(self.decoder_stages, self.out_channels * self.patch**2, *how)
        axes = ("patch", "patch")
        self.quant = Linear((moments,), axes, self.dtype)
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
        self, x: Float[Array, "b f h w c"], first: bool = True
    ) -> tuple[Float[Array, "b f2 h2 w2 z"], Float[Array, "b f2 h2 w2 z"]]:
        """Mean and log-variance, clamped to ``LOGVAR``, of the latents of clips in [-1, 1].

        ``first``: whether ``x`` begins the clip, or goes on with it. UserError for shapes that do not
        fit.
        """
        condition_module.check_data(self, x)
        self.check_frames(x.shape[1], first)
        if any(side % 2**self.halvings for side in x.shape[2:4]):
            raise UserError(
                f"got frames of {x.shape[2]}x{x.shape[3]}; this autoencoder halves them "
                f"{self.halvings} times: give sides that {2**self.halvings} divides"
            )
        h = self.quant(self.encoder(folded(x, self.patch), first))
        mean, logvar = jnp.split(h.astype(wide(self.dtype)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR)

    def decode(
        self, z: Float[Array, "b f h w c"], first: bool = True
    ) -> Float[Array, "b f2 h2 w2 d"]:
        """Clips from latents as ``encode`` gives them; they may leave [-1, 1] a little."""
        if z.ndim != 5 or z.shape[-1] != self.latent_channels:
            raise UserError(
                f"got latents of shape {z.shape}; expected (batch, frames, height, width, "
                f"{self.latent_channels})"
            )
        x = self.decoder(self.post_quant(z), first)
        return unfolded(x.astype(wide(self.dtype)), self.patch)

    @nn.nowrap
    def check_frames(self, frames: int, first: bool = True) -> None:
        """Raise UserError for a number of frames that no latents have."""
        stride, rest = self.stride, frames - first
        if rest % stride or frames < 1:
            below = max(rest // stride * stride + first, int(first))
            raise UserError(
                f"got clips of {frames} frames; this autoencoder makes a frame of latents of the first "
                f"one and of each {stride} after it: give 1 + {stride}k frames, such as {below} or "
                f"{below + stride}"
            )

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; the levels' parts are of all levels of a half together."""
        own = (shape[0], *(side // self.patch for side in shape[1:3]))
        few = frames_at(shape[0], self.stride.bit_length() - 1)
        latents = own[1] * own[2] >> 2 * (len(self.encoder_stages) - 1)
        inner, taps = self.latent_channels, 9 * TAPS
        first, last = self.encoder_stages[0].inputs, self.encoder_stages[-1].outputs
        start, end = self.decoder_stages[0].inputs, self.decoder_stages[-1].outputs
        pixels, area = math.prod(own), self.patch**2
        macs = {
            "embed": taps * pixels * area * self.in_channels * first,
            "encoder/final": taps * few * latents * last * 2 * inner,
            "quant": few * latents * 4 * inner**2,
            "post_quant": few * latents * inner**2,
            "decoder/embed": taps * few * latents * inner * start,
            "decoder/final": taps * pixels * end * area * self.out_channels,
        }
        halves = {"encoder": (self.encoder_stages, last), "decoder": (self.decoder_stages, start)}
        for half, (stages, width) in halves.items():
            parts = middle_macs(few, latents, width)
            parts["conv"] += sum(stage_macs(stage, own) for stage in stages)
            macs |= {f"{half}/{part}": count for part, count in parts.items()}
        return macs

    def attention_macs(self, shape: Shape) -> int:
        """Every pixel of the latents with those of its frame."""
        side = math.prod(shape[1:3]) >> 2 * self.halvings
        widths = self.encoder_stages[-1].outputs, self.decoder_stages[0].inputs
        return frames_at(shape[0], self.stride.bit_length() - 1) * side**2 * sum(widths) // 2

    def stream(self, shape: Shape) -> int:
        """What leaves each block."""
        total, pixels = 0, math.prod(shape[1:3]) // self.patch**2
        for stage in self.encoder_stages + self.decoder_stages:
            frames = frames_at(shape[0], stage.time_level)
            total += stage.blocks * stage.width * frames * (pixels >> 2 * stage.level)
        return total

    def plain(self, unrolled: bool = False) -> WanVAE:
        """See ``Network``; the levels differ, so they are never looped over."""
        return self.clone(style=dataclasses.replace(self.style, attention="xla"), remat="none")


def folded(x: Float[Array, "b f h w c"], patch: int) -> Float[Array, "b f h2 w2 d"]:
    """Every ``patch x patch`` pixels as the channels of one: channel, column, row."""
    if patch == 1:
        return x
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, f, h // patch, w // patch, -1)


def unfolded(x: Float[Array, "b f h w c"], patch: int) -> Float[Array, "b f h2 w2 d"]:
    """The inverse of ``folded``."""
    if patch == 1:
        return x
    b, f, h, w, _ = x.shape
    x = x.reshape(b, f, h, w, -1, patch, patch).transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(b, f, h * patch, w * patch, -1)


def build(
    *,
    size: str | None = None,
    width: Count | None = None,
    multipliers: tuple[Count, ...] | None = None,
    decoder_width: Count | None = None,
    depth: Count | None = None,
    latent_channels: Count | None = None,
    temporal: tuple[bool, ...] | None = None,
    shortcuts: bool | None = None,
    patch: Count | None = None,
    in_channels: Count = 3,
    out_channels: Count | None = None,
    remat: str = "none",
    dtype: str = "float32",
    attention: str = "auto",
) -> WanVAE:
    """A causal video autoencoder: give a ``size``, ``Wan2.1`` or ``Wan2.2``, or else a ``width``.

    ``multipliers``: the channels of each level, in ``width``s (``decoder_width``s in the decoder); each
    level after the first halves height and width, and where ``temporal`` says so, for each halving, the
    frames (default: all but the first). ``depth``: residual blocks a level, one more in the decoder.
    ``shortcuts``: around each level, as in Wan 2.2. ``patch``: pixels a side that are seen as one, 1 or
    2. ``remat``: a policy of ``models/remat.py``, for each level.

    Raises UserError for numbers that do not fit together.
    """
    given = {
        "width": width,
        "multipliers": multipliers,
        "decoder_width": decoder_width,
        "depth": depth,
        "latent_channels": latent_channels,
        "temporal": temporal,
        "shortcuts": shortcuts,
        "patch": patch,
    }
    if size is not None and size not in SIZES:
        raise UserError(f"no size {size!r}: {config.suggest(size, list(SIZES))}")
    chosen = DEFAULTS | (SIZES[size] if size is not None else {})
    chosen |= {k: v for k, v in given.items() if v is not None}
    if "width" not in chosen:
        raise UserError(f"give a size, one of {', '.join(SIZES)}, or a width")
    if dtype not in DTYPES:
        raise UserError(f"got dtype={dtype!r}: {config.suggest(dtype, list(DTYPES))}")
    check_remat(remat)
    attention_module.check(attention)
    width, multipliers = chosen["width"], chosen["multipliers"]
    decoder_width, patch = chosen["decoder_width"] or width, chosen["patch"]
    halvings = len(multipliers) - 1
    temporal = chosen["temporal"]
    temporal = tuple(i > 0 for i in range(halvings)) if temporal is None else temporal
    if not multipliers or len(temporal) != halvings:
        raise UserError(
            f"got multipliers={multipliers} and temporal={temporal}; expected one multiplier a level, "
            "and for each but the last whether it halves the frames too"
        )
    if patch not in (1, 2):
        raise UserError(f"got patch={patch}; expected 1 or 2")
    stages = plan(width, decoder_width, multipliers, chosen["depth"], temporal, chosen["shortcuts"])
    check_widths(stages, chosen["shortcuts"])
    return WanVAE(
        encoder_stages=stages[0],
        decoder_stages=stages[1],
        style=Style(dtype, attention),
        in_channels=in_channels,
        out_channels=out_channels or in_channels,
        latent_channels=chosen["latent_channels"],
        patch=patch,
        remat=remat,
    )
