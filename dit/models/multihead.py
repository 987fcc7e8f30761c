"""Multi-head attention as modules: packed query, key and value, QK-norm, rotary positions."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from dit.models.activations import WHOLE_HEADS, constrain
from dit.models.attention import Visibility, attention
from dit.models.layers import Linear, Norm
from dit.models.positions import Rotary, rotate
from dit.models.remat import mark_attention


class SelfAttention(nn.Module):
    """One kernel ``(d, 3, heads, head_dim)`` gives q, k and v; ``qk_norm`` puts RMSNorm on q and k.

    QK-norm keeps attention logits bounded over long training (Dehghani et al. 2023); its scales, one
    a channel of a head, are shared by the heads.
    """

    heads: int
    dtype: str
    qk_norm: bool = False
    kernel: str = "auto"
    out_init: Callable | None = None
    bias: bool = True
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        rotary: Rotary | None = None,
        visible: Visibility | None = None,
    ) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        shape = (3, self.heads, d // self.heads)
        axes = ("embed", None, "heads", "head_dim")
        qkv = Linear(shape, axes, self.dtype, bias=self.bias, apart=True, name="qkv")(x)
        q, k, v = (constrain(part, *WHOLE_HEADS) for part in qkv)
        if self.qk_norm:
            norm = {"affine": True, "eps": self.norm_eps, "axis": "head_dim"}
            q = Norm("rms", name="q_norm", **norm)(q).astype(q.dtype)
            k = Norm("rms", name="k_norm", **norm)(k).astype(k.dtype)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        out = mark_attention(attention(q, k, v, visible, self.kernel))
        axes = ("heads", "head_dim", "embed")
        return Linear((d,), axes, self.dtype, self.out_init, self.bias, name="out")(out)


class CrossAttention(nn.Module):
    """Tokens attend to a sequence of conditions: q from ``x``, k and v from ``sequence``."""

    heads: int
    dtype: str
    qk_norm: bool = False
    kernel: str = "auto"
    out_init: Callable | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        sequence: Float[Array, "b m e"],
        visible: Visibility | None = None,
    ) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        head = (self.heads, d // self.heads)
        q = Linear(head, ("embed", "heads", "head_dim"), self.dtype, name="q")(x)
        axes = ("embed", None, "heads", "head_dim")
        k, v = Linear((2, *head), axes, self.dtype, apart=True, name="kv")(sequence)
        if self.qk_norm:
            q = Norm("rms", affine=True, axis="head_dim", name="q_norm")(q).astype(q.dtype)
            k = Norm("rms", affine=True, axis="head_dim", name="k_norm")(k).astype(k.dtype)
        out = mark_attention(attention(constrain(q, *WHOLE_HEADS), k, v, visible, self.kernel))
        axes = ("heads", "head_dim", "embed")
        return Linear((d,), axes, self.dtype, self.out_init, name="out")(out)


def self_macs(n: int, d: int) -> int:
    """Multiply-adds of ``SelfAttention`` on ``n`` tokens: four kernels and two products of pairs."""
    return 4 * n * d * d + 2 * n * n * d


def cross_macs(n: int, m: int, d: int) -> int:
    """Multiply-adds of ``CrossAttention`` from ``n`` tokens to ``m``."""
    return 2 * n * d * d + 2 * m * d * d + 2 * n * m * d
