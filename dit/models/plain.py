"""The block behind the variants that take their condition as tokens: plain pre-norm residuals."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from dit.models.condition import Condition
from dit.models.layers import Mlp, Norm, mlp_macs
from dit.models.multihead import CrossAttention, SelfAttention, cross_macs, self_macs


class PlainBlock(nn.Module):
    """Self-attention, cross-attention to the condition if ``uses`` is ``sequence``, and an MLP."""

    positions: ClassVar[str] = "sincos"

    heads: int
    mlp_ratio: float
    dtype: str
    kernel: str
    uses: str
    qk_norm: bool = False
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], c: Condition) -> Float[Array, "b n d"]:
        options = (self.heads, self.dtype, self.qk_norm, self.kernel)
        norm = Norm("layer", True, self.eps, name="norm_attention")
        attend = SelfAttention(*options, name="attention")
        x = (x + attend(norm(x), c.rotary, c.visible)).astype(x.dtype)
        if self.uses == "sequence":
            norm = Norm("layer", True, self.eps, name="norm_cross")
            attend = CrossAttention(*options, name="cross")
            x = (x + attend(norm(x), c.sequence, c.readable)).astype(x.dtype)
        norm = Norm("layer", True, self.eps, name="norm_mlp")
        mlp = Mlp("gelu", self.mlp_ratio, self.dtype, name="mlp")
        return (x + mlp(norm(x))).astype(x.dtype)

    def macs(self, n: int, k: int, m: int, d: int) -> dict[str, int]:
        """Multiply-adds by part; see ``models/blocks``."""
        parts = {"attention": self_macs(n, d), "mlp": mlp_macs("gelu", d, self.mlp_ratio, n)}
        if self.uses == "sequence":
            parts["cross"] = cross_macs(n, m, d)
        return parts
