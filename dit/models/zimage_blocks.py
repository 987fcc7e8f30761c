"""The parts of Z-Image: blocks with norms before and after each branch, their modulation, the last map.

``x + tanh(g) * norm(f(norm(x) (1 + s)))`` for attention and for a SwiGLU, all norms RMSNorms; ``s`` and
``g`` are linear in an embedding of time of 256 channels at most, whatever the network's width.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.embeddings import sinusoids
from dit.models.layers import Linear, Mlp, Norm, layer_norm, mlp_macs, normal, spread, wide, zeros
from dit.models.mmdit_blocks import Angles
from dit.models.multihead import SelfAttention, self_macs

TIME = 256  # channels of the embedding of time, or the width if that is less
HIDDEN = 1024  # of its MLP
RATIO = 4.0  # of an MLP without gate and as many weights


@struct.dataclass
class Told:
    """What the blocks are told, for ``image``, ``text`` and their ``row``.

    ``vector``: embeddings of time; ``index``: which of them a token has, where there are several.
    ``visible``: which tokens are seen, where not all are; ``rotary``: the angles.
    """

    vector: Float[Array, "b _ e"]
    index: dict[str, Int[Array, "b _"]]
    visible: dict[str, Visibility]
    rotary: Angles


@dataclasses.dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common."""

    width: int
    heads: int
    eps: float
    dtype: str
    kernel: str


class Time(nn.Module):
    """A two-layer MLP on sinusoids of ``t``, of a fixed size."""

    size: int
    dtype: str

    @nn.compact
    def __call__(self, t: Float[Array, "b k"]) -> Float[Array, "b k e"]:
        x = Linear((HIDDEN,), ("time", "fixed"), self.dtype, normal, name="in")(sinusoids(t))
        return Linear((self.size,), ("fixed", "fixed"), self.dtype, normal, name="out")(nn.silu(x))


class Modulation(nn.Module):
    """``parts`` vectors of a ``width`` from an embedding of time, zero at initialisation."""

    parts: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self, c: Float[Array, "b k e"]) -> list[Float[Array, "b k d"]]:
        axes, split = ("fixed", None, "modulation"), "act_modulation"
        linear = Linear(
            (self.parts, self.width), axes, self.dtype, zeros, split=split, name="linear"
        )
        y = linear(constrain(c.astype(self.dtype), "act_replica", None, None))
        y = constrain(y, "act_replica", None, None, "act_modulation")
        y = constrain(y, "act_batch", None, None, "act_embed").astype(wide(c.dtype))
        return [y[..., i, :] for i in range(self.parts)]


class Block(nn.Module):
    """One block on the tokens of ``where``; without ``adaptive`` it is not told the time."""

    style: Style
    where: str
    adaptive: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], c: Told) -> Float[Array, "b n d"]:
        s, n = self.style, x.shape[1]
        parts = [None] * 4
        if self.adaptive:
            parts = Modulation(4, s.width, s.dtype, name="modulation")(c.vector)
            parts = [spread(part, n, c.index.get(self.where)) for part in parts]
        rotary, visible = c.rotary[self.where], c.visible.get(self.where)
        none = (False, False)
        kernel = {"kernel": s.kernel, "norm_eps": s.eps, "bias": none}
        attend = SelfAttention(s.heads, s.dtype, True, name="attention", **kernel)
        mlp = Mlp("swiglu", RATIO, s.dtype, none, name="mlp")
        x = self.branch(x, "attention", lambda h: attend(h, rotary, visible), *parts[:2])
        return self.branch(x, "mlp", mlp, *parts[2:])

    def branch(self, x: Float[Array, "b n d"], name: str, function, scale, gate):
        """``x + tanh(gate) * norm(function(norm(x) (1 + scale)))``."""
        before, after = (
            Norm("rms", True, self.style.eps, name=f"{name}_{end}") for end in ("before", "after")
        )
        h = before(x) if scale is None else before(x) * (1 + scale)
        y = after(function(h))
        return (x + (y if gate is None else jnp.tanh(gate) * y)).astype(x.dtype)

    def macs(self, n: int, k: int) -> dict[str, int]:
        """Multiply-adds by part, on ``n`` tokens with ``k`` times."""
        d = self.style.width
        parts = {"attention": self_macs(n, d), "mlp": mlp_macs("swiglu", d, RATIO, n)}
        return parts | ({"modulation": k * min(d, TIME) * 4 * d} if self.adaptive else {})


class Final(nn.Module):
    """``linear(layer_norm(x) (1 + s))``, ``s`` linear in ``silu`` of the embedding of time."""

    features: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], time: Float[Array, "b k e"]
    ) -> Float[Array, "b n p"]:
        (scale,) = Modulation(1, x.shape[-1], self.dtype, name="modulation")(nn.silu(time))
        h = layer_norm(x, 1e-6) * (1 + spread(scale, x.shape[1]))
        linear = Linear((self.features,), ("embed", "patch"), self.dtype, zeros, name="linear")
        return linear(h).astype(wide(x.dtype))
