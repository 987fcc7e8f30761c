"""The pieces all blocks are made of: linear maps, norms, adaptive modulation and MLPs.

Parameters are float32. A linear map runs in the model's compute ``dtype``; norms and modulation run
in float32 or better. Every parameter names its logical axes (``embed``, ``heads``, ``mlp``, ...),
which ``parallel/rules.py`` turns into mesh axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from dit.models.activations import constrain, shards
from dit.models.attention import platform

zeros = initializers.zeros
normal = initializers.normal(0.02)


def xavier(n_in: int, n_out: int) -> Callable:
    """Xavier-uniform over a kernel of ``n_in`` input axes and ``n_out`` output axes, flattened."""
    return initializers.variance_scaling(
        1.0,
        "fan_avg",
        "uniform",
        in_axis=tuple(range(n_in)),
        out_axis=tuple(range(n_in, n_in + n_out)),
    )


def wide(dtype) -> jnp.dtype:
    """At least float32: the type norms, softmax and modulation run in."""
    return jnp.promote_types(dtype, jnp.float32)


def along(v: Array, x: Array) -> Array:
    """``v`` with leading axes of size 1, to broadcast against ``x`` along its last axes."""
    return v.reshape((1,) * (x.ndim - v.ndim) + v.shape)


class Linear(nn.Module):
    """``x @ kernel + bias`` from the last ``len(inputs)`` axes of x to the axes ``features``.

    ``axes`` names the axes of the kernel, inputs first. Keeping heads as axes of their own lets a
    mesh split them (``split``: as this axis of activations is), and lets query, key and value share one
    product: with ``apart``, the result is a list along the first axis of ``features``. Its gradient is
    one concatenation and its biases' are taken part by part, where attention's backward pass ends.
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: str = "float32"
    kernel_init: Callable | None = None
    bias: bool = True
    split: str = "act_heads"
    apart: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array | list[Array]:
        n_out = len(self.features)
        n_in = len(self.axes) - n_out
        init = self.kernel_init or xavier(n_in, n_out)
        rows, inputs = x.shape[:-n_in], x.shape[-n_in:]
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, self.axes), (*inputs, *self.features)
        )
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        flat = shards(self.split) == 1  # several axes as one: gradients are then plain matrices
        if flat:
            x = x.reshape(*rows, math.prod(inputs))
            kernel = kernel.reshape(math.prod(inputs), math.prod(self.features))
        if flat and platform() == "cpu" and shards("act_length") == 1:
            x = x.reshape(math.prod(rows), -1)  # XLA then turns no gradient round, nor copies it
        n_sum = 1 if flat else n_in
        contract = (tuple(range(x.ndim - n_sum, x.ndim)), tuple(range(n_sum)))
        y = jax.lax.dot_general(x, kernel, (contract, ((), ())))
        bias = None
        if self.bias:
            boxed = nn.with_logical_partitioning(zeros, self.axes[n_in:])
            bias = self.param("bias", boxed, self.features).astype(self.dtype)
        if self.apart:
            parts, *rest = self.features
            axis = y.ndim - (1 if flat else n_out)  # flat: a TPU would pad heads of 72 to 128
            pieces = jax.lax.split(y, (y.shape[axis] // parts,) * parts, axis)
            if bias is not None:
                bias = bias.reshape(parts, -1) if flat else bias
                pieces = [y + along(b, y) for y, b in zip(pieces, bias, strict=True)]
            return [piece.reshape(*rows, *rest) for piece in pieces]
        if bias is not None:
            y = y + along(bias.reshape(-1) if flat else bias, y)
        return y.reshape(*rows, *self.features)


def layer_norm(x: Float[Array, "... d"], eps: float) -> Float[Array, "... d"]:
    """Zero mean and unit variance over the last axis, in float32 or better.

    x is centred first. Accelerators take the variance of bfloat16 inputs as E[x^2] - E[x]^2: one pass
    for both sums, which ends the product that made x. That loses some ``2^-24 (mean / std)^2`` of the
    variance, less than what rounding to bfloat16 did to it, ``2^-16 (mean / std)^2 / 12``.
    """
    short = x.dtype == jnp.bfloat16 and platform() != "cpu"  # where its derivative is slower too
    x = x.astype(wide(x.dtype))
    mean = x.mean(-1, keepdims=True)
    if short:
        variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
        return (x - mean) * jax.lax.rsqrt(variance + eps)
    x = x - mean
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def rms_norm(x: Float[Array, "... d"], eps: float) -> Float[Array, "... d"]:
    """Unit mean square over the last axis, in float32 or better (Zhang & Sennrich 2019)."""
    x = x.astype(wide(x.dtype))
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


class Norm(nn.Module):
    """``kind`` is ``layer`` or ``rms``; ``affine`` adds a learned scale (and, for layer, a bias)."""

    kind: str = "layer"
    affine: bool = False
    eps: float = 1e-6
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = layer_norm(x, self.eps) if self.kind == "layer" else rms_norm(x, self.eps)
        if self.affine:
            boxed = nn.with_logical_partitioning(initializers.ones, (self.axis,))
            y = y * along(self.param("scale", boxed, x.shape[-1:]), y)
            if self.kind == "layer":
                boxed = nn.with_logical_partitioning(zeros, (self.axis,))
                y = y + along(self.param("bias", boxed, x.shape[-1:]), y)
        return y


class Modulation(nn.Module):
    """``parts`` vectors of x's width from a condition: ``Linear(silu(c))``, zero at initialisation.

    A third of a DiT's parameters, used once a sample: where the batch and the parameters are split over
    the same devices, conditions go to the devices that hold their columns and the results come back,
    which is far less than the columns.
    """

    parts: int
    dtype: str

    @nn.compact
    def __call__(self, c: Float[Array, "b k d"]) -> list[Float[Array, "b k d"]]:
        linear = Linear(
            (self.parts, c.shape[-1]),
            ("condition", None, "modulation"),
            dtype=self.dtype,
            kernel_init=zeros,
            split="act_modulation",
            name="linear",
        )
        h = constrain(nn.silu(c).astype(self.dtype), "act_replica", None, None)
        y = constrain(linear(h), "act_replica", None, None, "act_modulation")
        y = constrain(y, "act_batch", None, None, "act_embed").astype(wide(c.dtype))
        return [y[..., i, :] for i in range(self.parts)]


def spread(
    v: Float[Array, "b k d"], n: int, frame: Int[Array, "b n"] | None = None
) -> Float[Array, "b _ d"]:
    """One row a token from one row a frame block: ``frame``, ``b n``, says which.

    Without it the ``n`` tokens are ``k`` equal blocks in order; one row is left to broadcast.
    """
    b, k, d = v.shape
    if k == 1:
        return v
    if frame is None:
        return jnp.broadcast_to(v[:, :, None], (b, k, n // k, d)).reshape(b, n, d)
    return jnp.take_along_axis(v, frame[..., None], axis=1)


def modulate(
    x: Float[Array, "b n d"],
    shift: Float[Array, "b _ d"],
    scale: Float[Array, "b _ d"],
) -> Float[Array, "b n d"]:
    """``x (1 + scale) + shift``."""
    return x * (1 + scale) + shift


class Mlp(nn.Module):
    """``kind`` ``gelu``: two layers with a tanh-approximated GELU; ``swiglu``: Shazeer 2020.

    SwiGLU has three kernels, so its hidden size is two thirds of the other's: ``int(2 r d / 3)``.
    """

    kind: str
    ratio: float
    dtype: str

    @staticmethod
    def hidden(kind: str, width: int, ratio: float) -> int:
        """The hidden size."""
        return int(width * ratio) if kind == "gelu" else int(2 * int(width * ratio) / 3)

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        hidden = self.hidden(self.kind, d, self.ratio)
        if self.kind == "gelu":
            h = Linear((hidden,), ("embed", "mlp"), self.dtype, name="in")(x)
            h = nn.gelu(h, approximate=True)
        else:
            h = Linear((2, hidden), ("embed", None, "mlp"), self.dtype, name="in")(x)
            h = nn.silu(h[..., 0, :]) * h[..., 1, :]
        return Linear((d,), ("mlp", "embed"), self.dtype, name="out")(h)


def mlp_macs(kind: str, width: int, ratio: float, n: int) -> int:
    """Multiply-adds of an ``Mlp`` on ``n`` tokens."""
    return (2 if kind == "gelu" else 3) * n * width * Mlp.hidden(kind, width, ratio)
