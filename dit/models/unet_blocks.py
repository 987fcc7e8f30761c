"""The layers of a U-Net: convolutions, group norm, residual blocks, attention in space and time.

Every layer takes ``b f h w c`` and treats each frame as an image; only attention along time looks at
several frames. Norms and activations run in float32, convolutions in the compute ``dtype``. On a mesh
with ``context`` only attention is split over that axis; its devices repeat the convolutions.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from dit.models.activations import constrain
from dit.models.attention import Visibility, platform
from dit.models.layers import Linear, along, wide, zeros
from dit.models.multihead import CrossAttention, SelfAttention
from dit.models.positions import rotary

PIXELS = ("act_batch", None, None, None, "act_embed")  # b f h w c, between layers
HIDDEN = ("act_batch", None, None, None, "act_heads")  # inside a residual block


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the network, by its shapes: the model runs it and counts it from these.

    ``level``: how often its input was halved. ``skip``: how many of its ``inputs`` come from a layer on
    the way down. ``keep``: its output goes to such a layer on the way up. ``heads`` and ``temporal``:
    how many heads its attention in space and along time has, 0 for no attention. ``transformer``: how
    many blocks of a transformer are there in place of attention in space. ``kind``: a residual block, or
    a convolution alone. ``shortcut``: to a convolution that resamples, its input is added, resampled
    without parameters (``around``).
    """

    name: str
    level: int
    inputs: int
    outputs: int
    skip: int = 0
    keep: bool = False
    resample: Literal["", "down", "up"] = ""
    kind: Literal["block", "conv"] = "block"
    heads: int = 0
    temporal: int = 0
    shortcut: bool = False
    transformer: int = 0

    @property
    def level_out(self) -> int:
        """How often its output has been halved."""
        return self.level + {"": 0, "down": 1, "up": -1}[self.resample]


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common; the last two of transformers."""

    groups: int
    eps: float
    scale_shift: bool
    dtype: str
    attention: str
    corner: bool = False  # convolutions that halve see zeros on the right and below alone
    linear_projection: bool = True  # to a transformer and back: a matrix, not a convolution of 1x1
    unroll: str | int | bool = "auto"


class Conv(nn.Module):
    """A convolution of every frame. ``axes`` names its inputs and outputs.

    ``pad``: rows of zeros above and below the frame, and so to its left and right.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    kernel_init: initializers.Initializer = initializers.xavier_uniform()
    stride: int = 1
    size: int = 3
    bias: bool = True
    pad: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 d"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        boxed = nn.with_logical_partitioning(self.kernel_init, ("spatial", "spatial", *self.axes))
        kernel = self.param("kernel", boxed, shape).astype(self.dtype)
        frames = x.reshape(-1, *x.shape[2:]).astype(self.dtype)  # (b f) h w c
        y = convolve(frames, kernel, self.stride, self.pad)
        if self.has_variable("params", "lora_a"):  # see training/lora.py
            pair = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            a, b = (x.astype(self.dtype) for x in pair)
            y = y + convolve(frames, a, self.stride, self.pad) @ b
        if self.bias:
            boxed = nn.with_logical_partitioning(zeros, self.axes[1:])
            y = y + along(self.param("bias", boxed, (self.features,)).astype(self.dtype), y)
        return y.reshape(*x.shape[:2], *y.shape[1:])


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "k k c d"],
    stride: int,
    pad: tuple[int, int] = (1, 1),
) -> Float[Array, "n h2 w2 d"]:
    """The convolution, with zeros around the frame; on a CPU as a product with all windows.

    XLA's own convolution is about thirty times slower there inside a loop (a sampler's steps, say), and
    at most twice as fast outside of one.
    """
    size = kernel.shape[0]
    if platform() != "cpu":
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            (pad, pad),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    _, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    windows = [x[:, i : i + h : stride, j : j + w : stride] for i, j in shifts]
    windows = jnp.concatenate(windows, axis=-1)
    y = windows.reshape(-1, len(shifts) * c) @ kernel.reshape(len(shifts) * c, -1)
    return y.reshape(*windows.shape[:-1], -1)


class GroupNorm(nn.Module):
    """Zero mean and unit variance over a frame's pixels and a group of channels (Wu & He 2018).

    In float32 or better, with a learned scale and bias a channel.
    """

    groups: int
    eps: float
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c = x.shape[-1]

        def mean(x):  # pixels first: the channels may be split over devices
            groups = x.mean((2, 3)).reshape(*x.shape[:2], self.groups, c // self.groups)
            groups = jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape)
            return groups.reshape(*x.shape[:2], 1, 1, c)

        x = x.astype(wide(x.dtype))
        x = x - mean(x)
        boxed = nn.with_logical_partitioning(initializers.ones, (self.axis,))
        scale = self.param("scale", boxed, (c,))
        boxed = nn.with_logical_partitioning(zeros, (self.axis,))
        bias = self.param("bias", boxed, (c,))
        inverse = jax.lax.rsqrt(mean(jnp.square(x)) + self.eps)
        return x * (inverse * along(scale, x)) + along(bias, x)


def halve(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
    """The mean of every 2x2 pixels."""
    b, f, h, w, c = x.shape
    return x.reshape(b, f, h // 2, 2, w // 2, 2, c).mean((3, 5))


def double(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
    """Every pixel as 2x2 (nearest neighbour)."""
    b, f, h, w, c = x.shape
    copies = jnp.broadcast_to(x[:, :, :, None, :, None], (b, f, h, 2, w, 2, c))
    return copies.reshape(b, f, 2 * h, 2 * w, c)


def fold(x: Float[Array, "b f h w c"], size: int) -> Float[Array, "b f h2 w2 k"]:
    """Every ``size x size`` pixels as the channels of one, those of a pixel together."""
    return rearrange(x, "b f (h i) (w j) c -> b f h w (i j c)", i=size, j=size)


def unfold(x: Float[Array, "b f h w k"], size: int) -> Float[Array, "b f h2 w2 c"]:
    """The reverse of ``fold``."""
    return rearrange(x, "b f h w (i j c) -> b f (h i) (w j) c", i=size, j=size)


def match_channels(x: Float[Array, "b f h w c"], channels: int) -> Float[Array, "b f h w d"]:
    """Fewer channels as means of ``c / d`` neighbours, more as ``d / c`` copies of each."""
    c = x.shape[-1]
    if c >= channels:
        return x.reshape(*x.shape[:-1], channels, c // channels).mean(-1)
    return jnp.repeat(x, channels // c, axis=-1)


def around(x: Float[Array, "b f h w c"], layer: Layer) -> Float[Array, "b f h2 w2 d"]:
    """What a convolution that resamples is added to: ``x``, resampled without parameters.

    Pixels are folded into channels, or channels unfolded into pixels, and channels matched by means or
    copies (Chen et al. 2024, "Deep Compression Autoencoder", section 3.1).
    """
    if layer.resample == "down":
        return match_channels(fold(x, 2), layer.outputs)
    return unfold(match_channels(x, 4 * layer.outputs), 2)


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``, the last convolution zero at first.

    The condition enters at the second norm: adaptive group norm, ``norm(h) (1 + scale) + shift``
    (Dhariwal & Nichol 2021, section 3), or without ``scale_shift`` ``norm(h + shift)`` (Ho et al.
    2020, appendix B). The condition's ``vector`` has the block's output's frames, height and width, or
    1 in their place; without one nothing enters. A block that resamples does so after the first
    activation, and to ``x``.
    """

    layer: Layer
    style: Style

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], vector: Float[Array, "b _ _ _ e"] | None
    ) -> Float[Array, "b f h2 w2 d"]:
        style, features = self.style, self.layer.outputs
        resample = {"": lambda x: x, "down": halve, "up": double}[self.layer.resample]
        h = nn.silu(GroupNorm(style.groups, style.eps, name="norm_in")(x))
        x, h = resample(x), resample(h)
        h = Conv(features, ("embed", "mlp"), style.dtype, name="conv_in")(h)
        h = constrain(h, *HIDDEN)
        norm = GroupNorm(style.groups, style.eps, name="norm_out")
        if vector is None:
            h = norm(h)
        else:
            parts = Linear(
                (2 if style.scale_shift else 1, features),
                ("embed", None, "mlp"),
                style.dtype,
                name="modulation",
            )(nn.silu(vector))
            parts = parts.astype(wide(style.dtype))  # b f h w parts d, or 1 in place of f, h and w
            if style.scale_shift:
                h = norm(h) * (1 + parts[..., 0, :]) + parts[..., 1, :]
            else:
                h = norm(h + parts[..., 0, :])
        h = Conv(features, ("mlp", "embed"), style.dtype, zeros, name="conv_out")(nn.silu(h))
        if x.shape[-1] != features:
            x = Linear((features,), ("embed", "embed_out"), style.dtype, name="shortcut")(x)
        return constrain((x + h).astype(style.dtype), *PIXELS)


class SpaceAttention(nn.Module):
    """Pixels attend to those of their own frame and then, given a context, to that.

    What is added is zero at first. ``mask``: true on the real tokens of the context.
    """

    heads: int
    style: Style

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        context: Float[Array, "b m e"] | None,
        mask: Bool[Array, "b m"] | None,
    ) -> Float[Array, "b f h w c"]:
        (b, f, h, w, c), style = x.shape, self.style
        options = {"kernel": style.attention, "out_init": zeros}
        y = GroupNorm(style.groups, style.eps, name="norm")(x).reshape(b * f, h * w, c)
        y = SelfAttention(self.heads, style.dtype, name="attention", **options)(y)
        x = constrain((x + y.reshape(x.shape)).astype(x.dtype), *PIXELS)
        if context is None:
            return x
        y = GroupNorm(style.groups, style.eps, name="norm_cross")(x).reshape(b, f * h * w, c)
        visible = None if mask is None else Visibility(k_valid=mask)
        y = CrossAttention(self.heads, style.dtype, name="cross", **options)(y, context, visible)
        return constrain((x + y.reshape(x.shape)).astype(x.dtype), *PIXELS)


class TimeAttention(nn.Module):
    """A pixel attends to the same pixel of all frames, by how far they are apart (Ho et al. 2022).

    What is added is zero at first. A single frame, an image, is returned as it is.
    """

    heads: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        (b, f, h, w, c), style = x.shape, self.style
        if f == 1 and not self.is_initializing():
            return x
        y = GroupNorm(style.groups, style.eps, name="norm")(x)
        y = y.transpose(0, 2, 3, 1, 4).reshape(b * h * w, f, c)
        position = jnp.arange(f, dtype=y.dtype)[None, :, None] * jnp.eye(1, 3, dtype=y.dtype)[None]
        angles = rotary(position, (c // self.heads, 0, 0))
        attend = SelfAttention(
            self.heads, style.dtype, kernel=style.attention, out_init=zeros, name="attention"
        )
        y = attend(y, angles).reshape(b, h, w, f, c).transpose(0, 3, 1, 2, 4)
        return constrain((x + y).astype(x.dtype), *PIXELS)
