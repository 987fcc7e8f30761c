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

    ``axes`` names the axes of the kernel, inputs first. Heads are axes of their own, so that a mesh can
    split them; ``split`` is the logical axis of activations by which it does. With ``apart`` the result
    is a list, one array for each index of the first axis of ``features``: query, key and value then
    share one product. A pair ``lora_a``, ``lora_b`` among the parameters (``training/lora.py``) adds a
    map of low rank.
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
        flat = shards(self.split) == 1  # several axes as one: gradients are then plain matrices
        x = x.astype(self.dtype)
        y = product(x, kernel.astype(self.dtype), n_in, flat)
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            y = y + low_rank(x, a.astype(self.dtype), b.astype(self.dtype), n_in).reshape(y.shape)
        bias = None
        if self.bias:
            boxed = nn.with_logical_partitioning(zeros, self.axes[n_in:])
            bias = self.param("bias", boxed, self.features).astype(self.dtype)
        if not self.apart:
            if bias is not None:
                y = y + along(bias.reshape(-1) if flat else bias, y)
            return y.reshape(*rows, *self.features)
        parts, *rest = self.features
        axis = y.ndim - (1 if flat else n_out)  # flat: a TPU would pad heads of 72 to 128
        pieces = jax.lax.split(y, (y.shape[axis] // parts,) * parts, axis)
        if bias is not None:  # added to each part: its gradient ends where attention's does
            bias = bias.reshape(parts, -1) if flat else bias
            pieces = [y + along(b, y) for y, b in zip(pieces, bias, strict=True)]
        return [piece.reshape(*rows, *rest) for piece in pieces]


def product(x: Array, kernel: Array, n_in: int, flat: bool) -> Array:
    """``x @ kernel`` over the last ``n_in`` axes of x, which are the first of the kernel.

    ``flat``: inputs and outputs are each one axis, so that the gradients are plain matrix products; on
    a CPU the rows are too, which spares XLA a transpose and a copy of each gradient.
    """
    if flat:
        rows, inputs = x.shape[:-n_in], math.prod(x.shape[-n_in:])
        if platform() == "cpu" and shards("act_length") == 1:
            rows = (math.prod(rows),)
        x, kernel, n_in = x.reshape(*rows, inputs), kernel.reshape(inputs, -1), 1
    contract = (tuple(range(x.ndim - n_in, x.ndim)), tuple(range(n_in)))
    return jax.lax.dot_general(x, kernel, (contract, ((), ())))


def low_rank(x: Array, a: Array, b: Array, n_in: int) -> Array:
    """``x A B`` with the inputs and outputs of ``x @ kernel``, outputs in one axis.

    ``a``: inputs, a stack or none, rank; ``b``: the stack, rank, outputs.
    """
    stack = math.prod(a.shape[n_in:-1])
    h = product(x, a.reshape(*a.shape[:n_in], -1), n_in, True)
    h = h.reshape(*h.shape[:-1], stack, -1)
    y = jnp.einsum("...sr,sro->...so", h, b.reshape(stack, a.shape[-1], -1))
    return y.reshape(*y.shape[:-2], -1)


def layer_norm(x: Float[Array, "... d"], eps: float) -> Float[Array, "... d"]:
    """Zero mean and unit variance over the last axis, in float32 or better.

    x is centred first, except for bfloat16 inputs on accelerators. There the variance is
    ``E[x^2] - E[x]^2``: one pass takes both sums, fused with the product that made x. The relative
    error, about ``2^-24 (mean / std)^2``, is below that of rounding to bfloat16,
    ``2^-16 (mean / std)^2 / 12``.
    """
    short = x.dtype == jnp.bfloat16 and platform() != "cpu"  # whose derivative of it is slower
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

    Modulations hold a third of a DiT's parameters and act once a sample. Where batch and parameters are
    split over the same devices, the conditions travel to the devices that hold the kernel's columns
    and the results travel back: far fewer bytes than gathering the kernel.
    """

    parts: int
    dtype: str
    bias: bool = True

    @nn.compact
    def __call__(self, c: Float[Array, "b k d"]) -> list[Float[Array, "b k d"]]:
        linear = Linear(
            (self.parts, c.shape[-1]),
            ("condition", None, "modulation"),
            dtype=self.dtype,
            kernel_init=zeros,
            bias=self.bias,
            split="act_modulation",
            name="linear",
        )
        h = constrain(nn.silu(c).astype(self.dtype), "act_replica", None, None)
        y = constrain(linear(h), "act_replica", None, None, "act_modulation")
        y = constrain(y, "act_batch", None, None, "act_embed").astype(wide(c.dtype))
        return [y[..., i, :] for i in range(self.parts)]


def spread(
    v: Float[Array, "b k d"], n: int, row: Int[Array, "b n"] | None = None
) -> Float[Array, "b _ d"]:
    """``k`` rows as one for each of ``n`` tokens; ``row`` says which of them a token has.

    Without it the tokens are ``k`` equal blocks in order. A single row is left as it is, to broadcast.
    """
    b, k, d = v.shape
    if k == 1:
        return v
    if row is None:
        return jnp.broadcast_to(v[:, :, None], (b, k, n // k, d)).reshape(b, n, d)
    return jnp.take_along_axis(v, row[..., None], axis=1)


def modulate(
    x: Float[Array, "b n d"],
    shift: Float[Array, "b _ d"],
    scale: Float[Array, "b _ d"],
) -> Float[Array, "b n d"]:
    """``x (1 + scale) + shift``."""
    return x * (1 + scale) + shift


class Mlp(nn.Module):
    """``kind`` ``gelu``: two layers with a tanh-approximated GELU; ``swiglu``, ``geglu``: Shazeer 2020.

    SwiGLU has three kernels, so its hidden size is two thirds of the other's: ``int(2 r d / 3)``. GEGLU
    has three and the whole size, as latent diffusion has it: the exact GELU of its second half gates
    the first.
    ``bias``: of the first map and of the last.
    """

    kind: str
    ratio: float
    dtype: str
    bias: tuple[bool, bool] = (True, True)

    @staticmethod
    def hidden(kind: str, width: int, ratio: float) -> int:
        """The hidden size."""
        return int(2 * int(width * ratio) / 3) if kind == "swiglu" else int(width * ratio)

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        hidden = self.hidden(self.kind, d, self.ratio)
        first, last = ({"bias": bias} for bias in self.bias)
        if self.kind == "gelu":
            h = Linear((hidden,), ("embed", "mlp"), self.dtype, name="in", **first)(x)
            h = nn.gelu(h, approximate=True)
        else:
            h = Linear((2, hidden), ("embed", None, "mlp"), self.dtype, name="in", **first)(x)
            if self.kind == "geglu":
                h = h[..., 0, :] * nn.gelu(h[..., 1, :], approximate=False)
            else:
                h = nn.silu(h[..., 0, :]) * h[..., 1, :]
        return Linear((d,), ("mlp", "embed"), self.dtype, name="out", **last)(h)


def mlp_macs(kind: str, width: int, ratio: float, n: int) -> int:
    """Multiply-adds of an ``Mlp`` on ``n`` tokens."""
    return (2 if kind == "gelu" else 3) * n * width * Mlp.hidden(kind, width, ratio)
