"""The layers of a causal video autoencoder (Wan, Wang et al. 2025, section 4.1): whole clips or chunks.

A frame sees no later one. Convolutions over 3x3x3 have two frames of zeros before a clip's first, and
the first frame is never joined with others in time: of ``1 + 2k`` frames ``1 + k`` are made on the way
down, and as many again on the way up.

Every layer takes ``first``: whether its input begins the clip. It then keeps in the collection ``past``,
where that is mutable, the last frames that the next chunk will need; a later chunk (``first=False``)
reads them there. Nothing is computed twice, and a clip in chunks is the clip as a whole.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from dit.models.activations import constrain
from dit.models.attention import platform
from dit.models.layers import Linear, Norm, along, zeros
from dit.models.multihead import SelfAttention, self_macs
from dit.models.unet_blocks import HIDDEN, PIXELS, Conv, double

PAST = "past"  # the collection of what a chunk leaves to the next
TINY = 1e-24  # added to mean squares: the norm is that of the direction alone
TAPS = 3  # frames that a convolution sees


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common."""

    dtype: str
    attention: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """The residual blocks of one level, and the change of resolution after them.

    ``level``, ``time_level``: how often height and width, and frames, of its input were halved.
    ``blocks``: how many, from ``inputs`` to ``width`` channels; ``outputs``: after ``resample``, which
    with ``temporal`` is one of frames too. ``shortcut``: the mean, or copies, of the input are added.
    """

    name: str
    level: int
    time_level: int
    inputs: int
    width: int
    outputs: int
    blocks: int
    resample: Literal["", "down", "up"] = ""
    temporal: bool = False
    shortcut: bool = False


def continued(
    module: nn.Module, x: Float[Array, "b f h w c"], count: int, first: bool
) -> Float[Array, "b f2 h w c"]:
    """``x`` after the ``count`` frames before it, zeros before a clip's first; keeps the last ones."""
    if first:
        past = jnp.zeros((len(x), count, *x.shape[2:]), x.dtype)
    else:
        past = module.get_variable(PAST, "frames")
    x = jnp.concatenate([past, x], axis=1)
    keep(module, x[:, -count:])
    return x


def keep(module: nn.Module, frames: Float[Array, "b f h w c"]) -> None:
    """Leave frames to the next chunk, if there is to be one."""
    if module.is_mutable_collection(PAST):
        module.put_variable(PAST, "frames", frames)


class TimeConv(nn.Module):
    """A convolution over three frames and ``size x size`` pixels; what is kept is up to the caller.

    As many frames less two come out, or with ``stride`` 2 each second of these.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    size: int = 3
    stride: int = 1
    kernel_init: initializers.Initializer = initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h w d"]:
        return self.convolved(x.astype(self.dtype))

    @nn.nowrap
    def convolved(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h w d"]:
        """The output, from within a compact method."""
        shape = (TAPS, self.size, self.size, x.shape[-1], self.features)
        names = ("spatial", "spatial", "spatial", *self.axes)
        boxed = nn.with_logical_partitioning(self.kernel_init, names)
        kernel = self.param("kernel", boxed, shape).astype(self.dtype)
        boxed = nn.with_logical_partitioning(zeros, self.axes[1:])
        bias = self.param("bias", boxed, (self.features,)).astype(self.dtype)
        y = convolve(x, kernel, self.stride)
        if self.has_variable("params", "lora_a"):  # see training/lora.py
            pair = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            a, b = (p.astype(self.dtype) for p in pair)
            y = y + convolve(x, a, self.stride) @ b
        return y + along(bias, y)


def convolve(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "3 k k c d"], stride: int
) -> Float[Array, "b f2 h w d"]:
    """The convolution, with zeros around each frame and none before or after them.

    On a CPU three products with the windows of each frame: XLA's own convolution is slow in a loop
    there, as in ``unet_blocks.convolve``.
    """
    size, pad = kernel.shape[1], kernel.shape[1] // 2
    if platform() != "cpu":
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, 1, 1),
            ((0, 0), (pad, pad), (pad, pad)),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    b, f, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    x = jnp.concatenate([x[:, :, i : i + h, j : j + w] for i, j in shifts], axis=-1)
    last, y = f - TAPS, 0.0
    for tap, one in enumerate(kernel):
        taken = x[:, tap : tap + last + 1 : stride]
        y += taken.reshape(-1, x.shape[-1]) @ one.reshape(x.shape[-1], -1)
    return y.reshape(b, last // stride + 1, h, w, -1)


class CausalConv(TimeConv):
    """The convolution of each frame with the two before it."""

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f h w d"]:
        return self.convolved(continued(self, x.astype(self.dtype), TAPS - 1, first))


class HalveTime(nn.Module):
    """Of ``1 + 2k`` frames ``1 + k``: the first as it is, then of each two with the one before them."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f2 h w c"]:
        axes = ("embed", "embed_out")
        conv = TimeConv(x.shape[-1], axes, self.dtype, size=1, stride=2, name="conv")
        if not first:
            return conv(continued(self, x, 1, first))
        keep(self, x[:, -1:])
        if x.shape[1] > 1:
            return jnp.concatenate([x[:, :1], conv(x)], axis=1)
        if self.is_initializing():
            conv(jnp.repeat(x, TAPS, axis=1))
        return x


class DoubleTime(nn.Module):
    """Of ``1 + k`` frames ``1 + 2k``: the first as it is, then of each one two.

    These come of the two frames before it and itself; the first is none of them, but zeros.
    """

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f2 h w c"]:
        c = x.shape[-1]
        conv = TimeConv(2 * c, ("embed", "embed_out"), self.dtype, size=1, name="conv")
        head, rest = (x[:, :1], x[:, 1:]) if first else (x[:, :0], x)
        rest = continued(self, rest, TAPS - 1, first)
        if rest.shape[1] < TAPS:  # a first frame alone
            if self.is_initializing():
                conv(jnp.repeat(x, TAPS, axis=1))
            return x
        y = conv(rest)
        b, f, h, w, _ = y.shape
        y = y.reshape(b, f, h, w, 2, c).transpose(0, 1, 4, 2, 3, 5)  # b f 2 h w c
        return jnp.concatenate([head.astype(y.dtype), y.reshape(b, 2 * f, h, w, c)], axis=1)


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``, the last convolution zero at first."""

    width: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f h w d"]:
        dtype = self.style.dtype

        def norm(name: str) -> Norm:
            return Norm("rms", affine=True, eps=TINY, name=name)

        h = nn.silu(norm("norm_in")(x))
        h = CausalConv(self.width, ("embed", "mlp"), dtype, name="conv_in")(h, first)
        h = nn.silu(norm("norm_out")(constrain(h, *HIDDEN)))
        last = CausalConv(self.width, ("mlp", "embed"), dtype, kernel_init=zeros, name="conv_out")
        h = last(h, first)
        if x.shape[-1] != self.width:
            x = Linear((self.width,), ("embed", "embed_out"), dtype, name="shortcut")(x)
        return constrain((x + h).astype(dtype), *PIXELS)


class SpaceAttention(nn.Module):
    """The pixels of each frame attend to each other, with one head; what is added is zero at first."""

    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        (b, f, h, w, c), style = x.shape, self.style
        y = Norm("rms", affine=True, eps=TINY, name="norm")(x).reshape(b * f, h * w, c)
        options = {"kernel": style.attention, "out_init": zeros, "name": "attention"}
        y = SelfAttention(1, style.dtype, **options)(y)
        return constrain((x + y.reshape(x.shape)).astype(x.dtype), *PIXELS)


class Middle(nn.Module):
    """A residual block, attention within frames, and another block."""

    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f h w c"]:
        width, style = x.shape[-1], self.style
        x = ResidualBlock(width, style, name="block_0")(x, first)
        x = SpaceAttention(style, name="space")(x)
        return ResidualBlock(width, style, name="block_1")(x, first)


class StageModule(nn.Module):
    """A ``Stage``."""

    stage: Stage
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f2 h2 w2 d"]:
        stage, dtype = self.stage, self.style.dtype
        h = x
        for i in range(stage.blocks):
            h = ResidualBlock(stage.width, self.style, name=f"block_{i}")(h, first)
        axes = ("embed", "embed_out")
        if stage.resample == "down":
            h = Conv(stage.outputs, axes, dtype, stride=2, pad=(0, 1), name="space")(h)
            h = HalveTime(dtype, name="time")(h, first) if stage.temporal else h
        elif stage.resample == "up":
            h = DoubleTime(dtype, name="time")(h, first) if stage.temporal else h
            h = Conv(stage.outputs, axes, dtype, name="space")(double(h))
        if stage.shortcut:
            frames, side = 1 + stage.temporal, 1 if stage.resample == "" else 2
            other = copies if stage.resample == "up" else mean
            h = h + other(x, stage.outputs, frames, side, first)
        return constrain(h.astype(dtype), *PIXELS)


def mean(
    x: Float[Array, "b f h w c"], features: int, frames: int, side: int, first: bool
) -> Float[Array, "b f2 h2 w2 d"]:
    """The mean over groups of channels and of ``frames x side x side`` pixels, with none to learn.

    The first frame of a clip has zeros before it.
    """
    if first and frames > 1:
        x = jnp.pad(x, ((0, 0), (frames - 1, 0), (0, 0), (0, 0), (0, 0)))
    b, f, h, w, c = x.shape
    x = x.reshape(b, f // frames, frames, h // side, side, w // side, side, c)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)  # b f h w c, then frames and sides within
    return x.reshape(b, f // frames, h // side, w // side, features, -1).mean(-1)


def copies(
    x: Float[Array, "b f h w c"], features: int, frames: int, side: int, first: bool
) -> Float[Array, "b f2 h2 w2 d"]:
    """Every channel as copies in channels and ``frames x side x side`` pixels; the first frame once."""
    b, f, h, w, c = x.shape
    x = jnp.repeat(x, features * frames * side**2 // c, axis=-1)
    x = x.reshape(b, f, h, w, features, frames, side, side)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)  # b f frames h side w side d
    x = x.reshape(b, f * frames, h * side, w * side, features)
    return x[:, frames - 1 :] if first else x


def frames_at(frames: int, time_level: int) -> int:
    """How many frames there are once they have been halved so often."""
    return 1 + ((frames - 1) >> time_level)


def block_macs(n: int, inputs: int, width: int) -> int:
    """Multiply-adds of a ``ResidualBlock`` on ``n`` pixels of all frames."""
    taps = TAPS * 9
    return n * (taps * (inputs * width + width**2) + (inputs * width if inputs != width else 0))


def middle_macs(frames: int, pixels: int, width: int) -> dict[str, int]:
    """Multiply-adds of ``Middle`` by part."""
    conv = 2 * block_macs(frames * pixels, width, width)
    return {"conv": conv, "attention": frames * self_macs(pixels, width)}


def stage_macs(stage: Stage, shape: tuple[int, ...]) -> int:
    """Multiply-adds of a stage for data of ``(f, h, w)``."""
    frames, pixels = frames_at(shape[0], stage.time_level), shape[1] * shape[2] >> 2 * stage.level
    total, inputs = 0, stage.inputs
    for _ in range(stage.blocks):
        total += block_macs(frames * pixels, inputs, stage.width)
        inputs = stage.width
    if stage.resample == "down":
        total += frames * (pixels // 4) * 9 * stage.width * stage.outputs
        if stage.temporal:
            total += (frames - 1) // 2 * (pixels // 4) * TAPS * stage.outputs**2
    elif stage.resample == "up":
        if stage.temporal:
            total += (frames - 1) * pixels * TAPS * 2 * stage.width**2
            frames = 2 * frames - 1
        total += frames * pixels * 4 * 9 * stage.width * stage.outputs
    return total
