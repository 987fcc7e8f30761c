"""What the condition becomes: embeddings of times, class label, context and other numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dit.models.activations import constrain
from dit.models.layers import Linear, Norm, along, normal, zeros
from dit.types import UserError

FREQUENCIES = 256  # channels of the sinusoids of time


def sinusoids(
    t: Float[Array, "*s"], dim: int = FREQUENCIES, denominator: float | None = None
) -> Float[Array, "*s {dim}"]:
    """``[cos(t w), sin(t w)]``, ``w_i = 10000^(-i / denominator)``, which is dim / 2 by default.

    The frequencies are constants, rounded once: at t = 999 an error in their last place would show.
    """
    half = dim // 2
    w = jnp.asarray(np.exp(-math.log(10000) * np.arange(half) / (denominator or half)), t.dtype)
    angle = t[..., None] * along(w, t[..., None])
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nn.Module):
    """A two-layer MLP on sinusoids of ``scale * t``; ``silent``: its output starts at zero.

    ``frequencies``: of the sinusoids, if their number grows with the network's width.
    """

    width: int
    dtype: str
    scale: float = 1.0
    denominator: float | None = None
    frequencies: int | None = None
    silent: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, t: Float[Array, "b k"]) -> Float[Array, "b k d"]:
        x = sinusoids(t * self.scale, self.frequencies or FREQUENCIES, self.denominator)
        axes = ("embed", "embed_out") if self.frequencies else ("time", "embed")
        x = Linear((self.width,), axes, self.dtype, normal, self.bias, name="in")(x)
        x = constrain(x, "act_batch", None, "act_embed")
        last = zeros if self.silent else normal
        out = Linear((self.width,), ("embed", "embed_out"), self.dtype, last, self.bias, name="out")
        return out(nn.silu(x))


class PooledEmbedding(nn.Module):
    """A two-layer MLP on one embedding a sample, whose output starts at zero (SD3: Esser et al. 2024).

    A dropped sample has a null embedding: ``learned``, or else zero.
    """

    width: int
    dtype: str
    learned: bool = True

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "b p"], drop: Bool[Array, " b"] | None
    ) -> Float[Array, "b 1 d"]:
        null = jnp.zeros(pooled.shape[-1:])
        if self.learned:
            boxed = nn.with_logical_partitioning(normal, ("context",))
            null = self.param("null", boxed, pooled.shape[-1:])
        if drop is not None:
            pooled = jnp.where(drop[:, None], along(null, pooled).astype(pooled.dtype), pooled)
        x = Linear((self.width,), ("context", "embed"), self.dtype, name="in")(pooled[:, None])
        x = constrain(x, "act_batch", None, "act_embed")
        out = Linear((self.width,), ("embed", "embed_out"), self.dtype, zeros, name="out")
        return out(nn.silu(x))


class LabelEmbedding(nn.Module):
    """A table with a row a class and, last, one for the null class."""

    classes: int
    width: int

    @nn.compact
    def __call__(
        self, label: Int[Array, "b k"], drop: Bool[Array, " b"] | None
    ) -> Float[Array, "b k d"]:
        table = self.param(
            "table",
            nn.with_logical_partitioning(normal, ("classes", "embed")),
            (self.classes + 1, self.width),
        )
        if drop is not None:
            label = jnp.where(drop[:, None], self.classes, label)
        return constrain(table, None, None)[
            label
        ]  # small: cheaper to replicate than to move its rows


class ContextEmbedding(nn.Module):
    """A sequence of embeddings to the model's width, with a null embedding.

    A dropped sample's context is the null embedding alone, whatever its length was. If that is not
    ``learned`` it is zero, and without a mask it takes the place of every token (SD3).
    ``pool`` gives the mean over the real tokens, ``b 1 d``, instead of the sequence. ``norm``: an
    RMSNorm before the linear map, with ``norm_eps``. Without a ``width`` there is no linear map.
    """

    context_dim: int
    width: int | None
    dtype: str
    pool: bool
    learned: bool = True
    norm: bool = False
    bias: bool = True
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "b m e"],
        mask: Bool[Array, "b m"] | None,
        drop: Bool[Array, " b"] | None,
    ) -> tuple[Float[Array, "b _ d"], Bool[Array, "b m"] | None]:
        null = jnp.zeros((self.context_dim,))
        if self.learned:
            boxed = nn.with_logical_partitioning(normal, ("context",))
            null = self.param("null", boxed, (self.context_dim,))
        if drop is not None:
            null = along(null, context).astype(context.dtype)
            context = jnp.where(drop[:, None, None], null, context)
            if self.learned and mask is None:
                mask = jnp.ones(context.shape[:2], bool)
        if drop is not None and mask is not None:
            first = jnp.arange(context.shape[1]) == 0
            mask = jnp.where(drop[:, None], first[None], mask)
        if self.pool:
            weight = jnp.ones(context.shape[:2]) if mask is None else mask
            weight = weight.astype(context.dtype)[..., None]
            total = jnp.maximum(weight.sum(1, keepdims=True), 1)
            context, mask = (context * weight).sum(1, keepdims=True) / total, None
        if self.norm:
            context = Norm("rms", True, self.norm_eps, name="norm")(context)
        if self.width is None:
            return context, mask
        linear = Linear(
            (self.width,), ("context", "embed"), self.dtype, bias=self.bias, name="linear"
        )
        return linear(context), mask


def check_labels(label: Array | np.ndarray | Sequence[int], num_classes: int) -> None:
    """Raise UserError if a label is not in ``[0, num_classes)``. For entry points: not under jit.

    The null class is asked for with ``Cond.drop``, not with a label.
    """
    label = np.asarray(label)
    bad = label[(label < 0) | (label >= num_classes)]
    if bad.size:
        raise UserError(
            f"label {bad.flat[0]} is out of range; expected 0 to {num_classes - 1} "
            f"(the model has {num_classes} classes)"
        )
