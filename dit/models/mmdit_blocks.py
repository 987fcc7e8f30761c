"""The blocks of MMDiT: streams with weights of their own and one attention, and streams merged.

``DoubleBlock`` (Esser et al. 2024, SD3, fig. 2b): image and text have each their own modulation, maps
and MLP; queries, keys and values of both meet in one attention. ``SingleBlock`` (FLUX.1): one set of
weights for the row ``[text, image]``, attention and MLP side by side (Dehghani et al. 2023).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from dit.models.activations import WHOLE_HEADS, constrain
from dit.models.attention import Visibility, attention
from dit.models.layers import Linear, Mlp, Modulation, Norm, layer_norm, mlp_macs, modulate, spread
from dit.models.multihead import SelfAttention, self_macs
from dit.models.positions import rotate
from dit.models.stack import Streams

ORDER = ("text", "image")  # of the streams in a row of tokens
ROW = "row"  # what the merged streams are called
Angles = dict[str, tuple[Float[Array, "_ _ r"], Float[Array, "_ _ r"]]]  # rotary ones, by stream


@struct.dataclass
class Joint:
    """What the blocks are told, for ``text``, ``image`` and, after the merge, their ``row``.

    ``vectors``: of each the embeddings of its times, one for all of its tokens or one for each of ``k``
    equal blocks; ``index``: which of those of the row a token has, where it has several. ``parts``: in
    place of the blocks' own modulations those that all blocks share. ``visible``: which tokens of the
    row are seen; ``rotary``: the angles of each.
    """

    vectors: dict[str, Float[Array, "b _ d"]]
    index: Int[Array, "b _"] | None = None
    parts: dict[str, list[Float[Array, "b _ d"]]] | None = None
    visible: Visibility | None = None
    rotary: Angles | None = None


@dataclasses.dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common. ``shared``: they have no modulation of their own."""

    width: int
    heads: int
    mlp: str
    mlp_ratio: float
    qk_norm: bool
    bias: bool
    shared: bool
    eps: float
    dtype: str
    kernel: str


class Stream(nn.Module):
    """One stream's part of a double block: what it asks of the attention, and what it makes of it.

    ``dual``: a second attention within the stream, beside the first (SD3.5-medium). ``ends``: nothing
    reads the stream after this block, so it has neither output nor MLP, and its queries are not used.
    """

    style: Style
    dual: bool = False
    ends: bool = False

    @property
    def parts(self) -> int:
        """Vectors of its modulation: shift, scale and gate of each branch."""
        return 2 if self.ends else 9 if self.dual else 6

    def setup(self):
        s = self.style
        head, options = (s.heads, s.width // s.heads), {"dtype": s.dtype, "bias": s.bias}
        if not s.shared:
            self.modulation = Modulation(self.parts, **options)
        axes = ("embed", None, "heads", "head_dim")
        self.qkv = Linear((3, *head), axes, apart=True, **options)
        if s.qk_norm:
            self.q_norm, self.k_norm = (Norm("rms", True, axis="head_dim") for _ in "qk")
        if self.dual:
            bias = {"bias": (s.bias, s.bias)}
            self.second = SelfAttention(s.heads, s.dtype, s.qk_norm, s.kernel, **bias)
        if not self.ends:
            self.out = Linear((s.width,), ("heads", "head_dim", "embed"), **options)
            self.mlp = Mlp(s.mlp, s.mlp_ratio, s.dtype, (s.bias, s.bias))

    def ask(self, x: Float[Array, "b n d"], c: Joint, name: str):
        """Query, key and value, and what ``answer`` needs of the modulation."""
        s = self.style
        parts = self.modulation(c.vectors[name]) if c.parts is None else c.parts[name]
        shift, scale, *rest = (spread(part, x.shape[1]) for part in parts)
        h = layer_norm(x, s.eps)
        qkv = self.qkv(modulate(h, shift, scale))
        q, k, v = (constrain(part, *WHOLE_HEADS) for part in qkv)
        if s.qk_norm:
            q, k = self.q_norm(q).astype(q.dtype), self.k_norm(k).astype(k.dtype)
        if c.rotary is not None:
            q, k = rotate(q, c.rotary[name]), rotate(k, c.rotary[name])
        if self.dual:
            *rest, shift, scale, gate = rest
            rest = [*rest, gate * self.second(modulate(h, shift, scale))]
        return (q, k, v), rest

    def answer(self, x: Float[Array, "b n d"], found: Float[Array, "b n h e"], rest: list):
        """The stream with what its queries found, and with its MLP's output."""
        gate, shift, scale, last, *second = rest
        x = (x + gate * self.out(found)).astype(x.dtype)
        for y in second:
            x = (x + y).astype(x.dtype)
        return (x + last * self.mlp(modulate(layer_norm(x, self.style.eps), shift, scale))).astype(
            x.dtype
        )

    def macs(self, n: int, k: int) -> dict[str, int]:
        """Multiply-adds on ``n`` tokens with ``k`` times, without those of the pairs."""
        s, d = self.style, self.style.width
        parts = {"qkv": 3 * n * d * d}
        if not s.shared:
            parts["modulation"] = k * d * self.parts * d
        if self.dual:
            parts["second"] = self_macs(n, d)
        if not self.ends:
            parts |= {"out": n * d * d, "mlp": mlp_macs(s.mlp, d, s.mlp_ratio, n)}
        return parts


class DoubleBlock(nn.Module):
    """All streams in turn, and one attention over the row of their tokens, text first.

    ``dual``: the image has a second attention of its own; ``ends``: the text ends here.
    """

    style: Style
    dual: bool = False
    ends: bool = False

    @nn.compact
    def __call__(self, x: Streams, c: Joint) -> Streams:
        names = [name for name in ORDER if name in x]
        sides = {name: self.side(name)(name=name) for name in names}
        asked = {name: sides[name].ask(x[name], c, name) for name in names}
        readers = [name for name in names if not sides[name].ends]
        q = jnp.concatenate([asked[name][0][0] for name in readers], axis=1)
        k, v = (jnp.concatenate([asked[name][0][i] for name in names], axis=1) for i in (1, 2))
        found, begin = attention(q, k, v, c.visible, self.style.kernel), 0
        for name in readers:
            end = begin + x[name].shape[1]
            y = sides[name].answer(x[name], found[:, begin:end], asked[name][1])
            x, begin = x | {name: y}, end
        return x

    def side(self, name: str):
        """One stream's part, without a name."""
        dual, ends = self.dual and name == "image", self.ends and name == "text"
        return lambda **where: Stream(self.style, dual, ends, **where)

    def macs(self, lengths: dict[str, int], times: dict[str, int]) -> dict[str, int]:
        """Multiply-adds by part, for so many tokens and times of every stream."""
        found, readers = {}, 0
        for name, n in lengths.items():
            side = self.side(name)(parent=None)
            readers += 0 if side.ends else n
            found |= {f"{name}/{k}": v for k, v in side.macs(n, times[name]).items()}
        return found | {"attention": 2 * readers * sum(lengths.values()) * self.style.width}


class SingleBlock(nn.Module):
    """``x + gate * (attention(h) + mlp(h))``, ``h = norm(x) (1 + scale) + shift``; one bias for both."""

    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], c: Joint) -> Float[Array, "b n d"]:
        s = self.style
        parts = c.parts and c.parts[ROW]
        if parts is None:
            parts = Modulation(3, s.dtype, s.bias, name="modulation")(c.vectors[ROW])
        shift, scale, gate = (spread(part, x.shape[1], c.index) for part in parts)
        h = modulate(layer_norm(x, s.eps), shift, scale)
        options = (s.heads, s.dtype, s.qk_norm, s.kernel)
        attend = SelfAttention(*options, bias=(s.bias, s.bias), name="attention")
        mlp = Mlp(s.mlp, s.mlp_ratio, s.dtype, (s.bias, False), name="mlp")
        y = attend(h, None if c.rotary is None else c.rotary[ROW], c.visible) + mlp(h)
        return (x + gate * y).astype(x.dtype)

    def macs(self, n: int, k: int) -> dict[str, int]:
        """Multiply-adds by part, for ``n`` tokens and ``k`` times of the row."""
        s, d = self.style, self.style.width
        parts = {"attention": self_macs(n, d), "mlp": mlp_macs(s.mlp, d, s.mlp_ratio, n)}
        return parts if s.shared else parts | {"modulation": k * d * 3 * d}
