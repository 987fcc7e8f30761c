"""A small bidirectional transformer over the bytes of a text, trained with the network.

A text is its UTF-8 bytes between a token that begins it and one that ends it; there is no vocabulary to
learn or to download. Positions are rotary along the text, so that any length works.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from dit.models import attention as attention_module
from dit.models import positions, stack
from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.condition import Condition
from dit.models.layers import Norm, mlp_macs, wide
from dit.models.multihead import self_macs
from dit.models.plain import PlainBlock
from dit.models.remat import check_remat
from dit.models.stack import Stage
from dit.text import Encoded, TextEncoder, Tokenizer
from dit.types import Count, Params, Positive, Range, UserError

BEGIN, END, PAD = 256, 257, 258  # after the 256 bytes
TOKENS = 264  # rows of the table: a number that meshes divide


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The tokenizer. Text that is cut ends in a whole character, and in ``END``."""

    length: int

    def __call__(self, text: str) -> tuple[Int[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
        """See ``Tokenizer``."""
        tokens = np.full(self.length, PAD, np.int32)
        data = _encoded(text)[: self.length - 2].decode(errors="ignore").encode()
        if text:
            tokens[: len(data) + 2] = BEGIN, *data, END
        return tokens, tokens != PAD

    def cut(self, text: str) -> str | None:
        """See ``Tokenizer``."""
        size = len(_encoded(text)) + 2
        if size <= self.length:
            return None
        return f"takes {size} tokens; this model reads {self.length} (text.length)"


def _encoded(text: str) -> bytes:
    """UTF-8; halves of surrogate pairs, which no file should hold, become question marks."""
    return text.encode(errors="replace")


class ByteEncoder(TextEncoder):
    """See the module. Made and checked by ``build``."""

    length: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    gives: str
    dtype: str
    remat: str
    unroll: str | int | bool
    attention: str

    @property
    def context_dim(self) -> int | None:
        """The width, unless only ``pooled`` is given."""
        return None if self.gives == "pooled" else self.width

    @property
    def pooled_dim(self) -> int | None:
        """The width, unless only ``context`` is given."""
        return None if self.gives == "context" else self.width

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One, over one stream."""
        return (Stage("blocks", self.depth, merge=("text",)),)

    def setup(self):
        boxed = nn.with_logical_partitioning(initializers.normal(1.0), ("classes", "embed"))
        self.table = self.param("table", boxed, (TOKENS, self.width))
        options = (self.heads, self.mlp_ratio, self.dtype, self.attention)
        self.blocks = PlainBlock(*options, uses="prefix")
        self.norm = Norm("layer", True)

    def __call__(self, tokens: Int[Array, "b m"], real: Bool[Array, "b m"] | None) -> Encoded:
        """See ``TextEncoder``; ``pooled`` is the mean over the text."""
        place = jnp.arange(tokens.shape[1], dtype=jnp.float32)[None, :, None]
        rotary = positions.rotary(jnp.pad(place, ((0, 0), (0, 0), (0, 2))), self._axes())
        visible = None
        if real is not None:  # of no text one token is seen: attention to nothing is not defined
            visible = Visibility(k_valid=real | (jnp.arange(real.shape[1]) == 0)[None])
        x = constrain(self.table, None, None)[tokens].astype(self.dtype)
        x = stack.run(self, self.stages, {"text": x}, Condition(visible=visible, rotary=rotary))[
            "text"
        ]
        x = self.norm(x)
        pooled = None if self.pooled_dim is None else mean(x, real)
        if self.context_dim is None:
            return Encoded(pooled=pooled)
        return Encoded(context=x, context_mask=real, pooled=pooled)

    @nn.nowrap
    def _axes(self) -> tuple[int, int, int]:
        """All channels of a head turn with the place in the text."""
        return (self.width // self.heads, 0, 0)

    def tokenizer(self) -> Tokenizer:
        """See ``TextEncoder``."""
        return Bytes(self.length)

    def macs(self, length: int) -> dict[str, int]:
        """See ``TextEncoder``."""
        parts = {
            "attention": self_macs(length, self.width),
            "mlp": mlp_macs("gelu", self.width, self.mlp_ratio, length),
        }
        return {f"blocks/{part}": self.depth * count for part, count in parts.items()}

    def stream(self, length: int) -> int:
        """See ``TextEncoder``."""
        return length * self.width * self.depth

    def plain(self, unrolled: bool = False) -> ByteEncoder:
        """See ``TextEncoder``."""
        return self.clone(unroll=unrolled, remat="none", attention="xla")

    def unstack(self, params: Params) -> Params:
        """See ``TextEncoder``."""
        return stack.unstack(params, self.stages)


def mean(x: Float[Array, "b m d"], real: Bool[Array, "b m"] | None) -> Float[Array, "b d"]:
    """The mean over the tokens that are real, zero where there are none."""
    if real is None:
        return x.mean(1)
    weight = real.astype(wide(x.dtype))[..., None]
    return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def build(
    *,
    length: Annotated[int, Range(3, 2**20)] = 64,
    width: Count = 64,
    depth: Count = 2,
    heads: Count = 2,
    mlp_ratio: Positive = 4.0,
    gives: Literal["context", "pooled", "both"] = "context",
    dtype: str = "float32",
    remat: str = "none",
    unroll: Literal["auto"] | bool | Count = "auto",
    attention: str = "auto",
) -> ByteEncoder:
    """``length``: tokens of a text, of which two begin and end it. ``gives``: the tokens' outputs as a
    sequence (``context``), their mean (``pooled``), or both.

    Raises UserError for numbers that do not fit together.
    """
    if width % (2 * heads):
        raise UserError(
            f"got width={width}, heads={heads}; heads must be an even part of the width"
        )
    check_remat(remat)
    attention_module.check(attention)
    run = {"dtype": dtype, "remat": remat, "unroll": unroll, "attention": attention}
    sizes = {"length": length, "width": width, "depth": depth, "heads": heads}
    return ByteEncoder(**sizes, mlp_ratio=float(mlp_ratio), gives=gives, **run)
