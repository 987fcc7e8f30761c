"""The block of Wan and LTX-Video, the embedding of an image and the last layer.

``x + gate * attention``, then cross-attention to the text, then ``x + gate * mlp``; the modulation of
all blocks is one, to which each adds a table of its own (adaLN-single: Chen et al. 2024, PixArt-alpha).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
from flax import struct
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from dit.models.attention import Visibility
from dit.models.layers import (
    Linear,
    Mlp,
    Norm,
    along,
    layer_norm,
    mlp_macs,
    modulate,
    normal,
    rms_norm,
    spread,
    wide,
    zeros,
)
from dit.models.multihead import CrossAttention, SelfAttention, cross_macs, self_macs
from dit.models.positions import Rotary

PARTS = 6  # shift, scale and gate of attention, and of the MLP
IMAGE_EPS = 1e-5  # of the norms of the image's embedding, whatever that of the blocks is


@struct.dataclass
class Told:
    """What the blocks are told.

    ``parts``: the modulation that they share, a row for each of ``k`` equal blocks of tokens;
    ``context`` with its ``mask``: the text; ``image``: of a reference image.
    """

    parts: list[Float[Array, "b k d"]]
    rotary: Rotary
    context: Float[Array, "b m d"] | None = None
    mask: Bool[Array, "b m"] | None = None
    image: Float[Array, "b i d"] | None = None


class Table(nn.Module):
    """Adds a learned row to each of several vectors, and makes of them one for each of ``n`` tokens."""

    @nn.compact
    def __call__(self, parts: list[Float[Array, "b k d"]], n: int) -> list[Float[Array, "b _ d"]]:
        d = parts[0].shape[-1]
        boxed = nn.with_logical_partitioning(initializers.normal(d**-0.5), (None, None, "norm"))
        rows = self.param("rows", boxed, (1, len(parts), d))
        return [spread(part + along(rows[:, i], part), n) for i, part in enumerate(parts)]


class WanBlock(nn.Module):
    """Without a context it has no cross-attention, which reads an image too if there is one.

    Queries and keys are normed over all heads together, with ``qk_eps``; cross-attention has neither
    positions nor gate. ``norm``: ``layer`` or ``rms``, before attention and MLP; ``cross_norm``: a
    LayerNorm before cross-attention.
    """

    heads: int
    mlp_ratio: float
    qk_norm: bool
    norm: str
    cross_norm: bool
    eps: float
    qk_eps: float
    dtype: str
    kernel: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], c: Told) -> Float[Array, "b n d"]:
        options = (self.heads, self.dtype, self.qk_norm, self.kernel)
        norms = {"norm_eps": self.qk_eps, "whole_norm": True}
        normed = layer_norm if self.norm == "layer" else rms_norm
        attend = SelfAttention(*options, **norms, name="attention")
        mlp = Mlp("gelu", self.mlp_ratio, self.dtype, name="mlp")
        shift, scale, gate, *last = Table(name="table")(c.parts, x.shape[1])
        y = attend(modulate(normed(x, self.eps), shift, scale), c.rotary)
        x = (x + gate * y).astype(x.dtype)
        if c.context is not None:
            read = CrossAttention(*options, zeros, **norms, name="cross")
            visible = None if c.mask is None else Visibility(k_valid=c.mask)
            h = Norm("layer", True, self.eps, name="norm_cross")(x) if self.cross_norm else x
            x = (x + read(h, c.context, visible, c.image)).astype(x.dtype)
        shift, scale, gate = last
        y = mlp(modulate(normed(x, self.eps), shift, scale))
        return (x + gate * y).astype(x.dtype)

    def macs(self, n: int, m: int, i: int, d: int) -> dict[str, int]:
        """Multiply-adds by part, for ``n`` tokens, ``m`` of the text and ``i`` of the image."""
        parts = {"attention": self_macs(n, d), "mlp": mlp_macs("gelu", d, self.mlp_ratio, n)}
        return parts | ({"cross": cross_macs(n, m, d, i)} if m else {})


class ImageEmbedding(nn.Module):
    """Norm, a two-layer MLP and norm, of the tokens of a reference image; ``positions``: learned ones.

    The MLP is as wide within as its input, and has the exact GELU.
    """

    width: int
    dtype: str
    positions: bool = False

    @nn.compact
    def __call__(self, image: Float[Array, "b i e"]) -> Float[Array, "b i d"]:
        e = image.shape[-1]
        if self.positions:
            boxed = nn.with_logical_partitioning(normal, (None, None, "norm"))
            image = image + along(self.param("positions", boxed, (1, *image.shape[1:])), image)
        linear = functools.partial(Linear, dtype=self.dtype)
        h = Norm("layer", True, IMAGE_EPS, name="norm_in")(image)
        h = linear((e,), ("context", "context"), name="in")(h)
        h = linear((self.width,), ("context", "embed"), name="out")(
            jax.nn.gelu(h, approximate=False)
        )
        return Norm("layer", True, IMAGE_EPS, name="norm_out")(h)


class Head(nn.Module):
    """Norm, modulated by the time and a table, and a linear map that starts at zero."""

    features: int
    dtype: str
    eps: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], time: Float[Array, "b k d"]
    ) -> Float[Array, "b n p"]:
        shift, scale = Table(name="table")([time, time], x.shape[1])
        h = modulate(layer_norm(x, self.eps), shift, scale)
        out = Linear((self.features,), ("embed", "patch"), self.dtype, zeros, name="linear")
        return out(h).astype(wide(x.dtype))
