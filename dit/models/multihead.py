"""Multi-head attention as modules: packed query, key and value, QK-norm, rotary positions."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.models.activations import WHOLE_HEADS, constrain
from dit.models.attention import Visibility, attention
from dit.models.cache import Past
from dit.models.layers import Linear, Norm
from dit.models.positions import Rotary, rotate


class SelfAttention(nn.Module):
    """One kernel ``(d, 3, heads, head_dim)`` gives q, k and v; ``qk_norm`` puts RMSNorm on q and k.

    QK-norm keeps attention logits bounded over long training (Dehghani et al. 2023); its scales, one
    a channel of a head, are shared by the heads. With ``whole_norm`` it is over all heads together, and
    has a scale for each of their channels (Wan). ``norm_eps``: of these norms. ``bias``: of the first
    map and of the last. With a ``past`` the tokens see what it holds too, and their own keys and values
    are sown as ``new/kv`` for it.
    """

    heads: int
    dtype: str
    qk_norm: bool = False
    kernel: str = "auto"
    out_init: Callable | None = None
    bias: tuple[bool, bool] = (True, True)
    norm_eps: float = 1e-6
    whole_norm: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        rotary: Rotary | None = None,
        visible: Visibility | None = None,
        past: Past | None = None,
    ) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        shape = (3, self.heads, d // self.heads)
        axes = ("embed", None, "heads", "head_dim")
        qkv = Linear(shape, axes, self.dtype, bias=self.bias[0], apart=True, name="qkv")(x)
        q, k, v = (constrain(part, *WHOLE_HEADS) for part in qkv)
        if self.qk_norm:
            q = normed(q, "q_norm", self.whole_norm, self.norm_eps)
            k = normed(k, "k_norm", self.whole_norm, self.norm_eps)
        if past is not None:
            self.sow("new", "kv", (k, v), reduce_fn=lambda _, new: new, init_fn=tuple)
            k, v = (jnp.concatenate(each, 1) for each in ((past.k, k), (past.v, v)))
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary if past is None else past.rotary)
        out = attention(q, k, v, visible, self.kernel)
        axes = ("heads", "head_dim", "embed")
        return Linear((d,), axes, self.dtype, self.out_init, self.bias[1], name="out")(out)


class CrossAttention(nn.Module):
    """Tokens attend to a sequence of conditions: q from ``x``, k and v from ``sequence``.

    A second sequence, ``beside`` it, has keys and values of its own, and what the same queries find
    there is added (decoupled cross-attention: Ye et al. 2023, IP-Adapter). ``qk_norm``,
    ``norm_eps``, ``whole_norm`` and ``bias`` are as in ``SelfAttention``. ``source``: the logical axis
    of the channels of ``sequence``.
    """

    heads: int
    dtype: str
    qk_norm: bool = False
    kernel: str = "auto"
    out_init: Callable | None = None
    norm_eps: float = 1e-6
    whole_norm: bool = False
    bias: tuple[bool, bool] = (True, True)
    source: str = "embed"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        sequence: Float[Array, "b m e"],
        visible: Visibility | None = None,
        beside: Float[Array, "b i e"] | None = None,
    ) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        head = (self.heads, d // self.heads)
        maps = {"dtype": self.dtype, "bias": self.bias[0]}
        q = Linear(head, ("embed", "heads", "head_dim"), name="q", **maps)(x)
        axes = (self.source, None, "heads", "head_dim")
        k, v = Linear((2, *head), axes, apart=True, name="kv", **maps)(sequence)
        if self.qk_norm:
            q = normed(q, "q_norm", self.whole_norm, self.norm_eps)
            k = normed(k, "k_norm", self.whole_norm, self.norm_eps)
        q = constrain(q, *WHOLE_HEADS)
        out = attention(q, k, v, visible, self.kernel)
        if beside is not None:
            k, v = Linear((2, *head), axes, apart=True, name="kv_beside", **maps)(beside)
            if self.qk_norm:
                k = normed(k, "k_norm_beside", self.whole_norm, self.norm_eps)
            out = out + attention(q, k, v, None, self.kernel)
        axes = ("heads", "head_dim", "embed")
        return Linear((d,), axes, self.dtype, self.out_init, self.bias[1], name="out")(out)


def normed(
    x: Float[Array, "b n h e"], name: str, whole: bool, eps: float
) -> Float[Array, "b n h e"]:
    """RMSNorm of queries or keys, of each head or of the ``whole`` of them; its scale is ``name``."""
    if whole:
        y = Norm("rms", affine=True, eps=eps, name=name)(x.reshape(*x.shape[:2], -1))
        return y.reshape(x.shape).astype(x.dtype)
    return Norm("rms", affine=True, eps=eps, axis="head_dim", name=name)(x).astype(x.dtype)


def self_macs(n: int, d: int) -> int:
    """Multiply-adds of ``SelfAttention`` on ``n`` tokens: four kernels and two products of pairs."""
    return 4 * n * d * d + 2 * n * n * d


def cross_macs(n: int, m: int, d: int, beside: int = 0) -> int:
    """Multiply-adds of ``CrossAttention`` from ``n`` tokens to ``m``, and to others ``beside`` them."""
    return 2 * n * d * d + 2 * (m + beside) * d * d + 2 * n * (m + beside) * d
