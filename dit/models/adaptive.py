"""The block behind all variants of adaLN: norms modulated by the condition."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from dit.models.condition import Condition
from dit.models.layers import Mlp, Modulation, Norm, mlp_macs, modulate, spread, zeros
from dit.models.multihead import CrossAttention, SelfAttention, cross_macs, self_macs


class AdaptiveBlock(nn.Module):
    """Attention, then an MLP, each on ``norm(x) (1 + scale) + shift`` (Peebles & Xie 2023, sec. 3.2).

    ``shift`` and ``scale`` are linear in ``silu(vector)``. With ``gated`` the branches are also
    multiplied by a ``gate`` that starts at zero, so that every block starts as the identity. Between
    the two, a block that uses ``both`` attends to the condition's sequence, if there is one.
    """

    heads: int
    mlp_ratio: float
    dtype: str
    kernel: str
    gated: bool
    norm: str = "layer"
    affine: bool = False
    mlp: str = "gelu"
    qk_norm: bool = False
    eps: float = 1e-6
    mlp_eps: float = 1e-6
    positions: str = "sincos"
    uses: str = "vector"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], c: Condition) -> Float[Array, "b n d"]:
        per_branch = 3 if self.gated else 2
        parts = Modulation(2 * per_branch, self.dtype, name="modulation")(c.vector)
        parts = [spread(part, x.shape[1], c.row) for part in parts]
        attend = SelfAttention(self.heads, self.dtype, self.qk_norm, self.kernel, name="attention")
        mlp = Mlp(self.mlp, self.mlp_ratio, self.dtype, name="mlp")
        norms = [
            Norm(self.norm, self.affine, self.eps, name="norm_attention"),
            Norm(self.norm, self.affine, self.mlp_eps, name="norm_mlp"),
        ]
        branches = [lambda h: attend(h, c.rotary, c.visible, c.past), mlp]
        for i, (norm, branch) in enumerate(zip(norms, branches, strict=True)):
            shift, scale, *gate = parts[per_branch * i : per_branch * (i + 1)]
            y = branch(modulate(norm(x), shift, scale))
            x = (x + (gate[0] * y if gate else y)).astype(x.dtype)
            if i == 0 and c.sequence is not None:
                x = self.read(x, c)
        return x

    def read(self, x: Float[Array, "b n d"], c: Condition) -> Float[Array, "b n d"]:
        """``x`` with what it finds in the condition's sequence."""
        norm = Norm("layer", True, self.eps, name="norm_cross")
        options = (self.heads, self.dtype, self.qk_norm, self.kernel, zeros)
        attend = CrossAttention(*options, name="cross")
        return (x + attend(norm(x), c.sequence, c.readable)).astype(x.dtype)

    def macs(self, n: int, k: int, m: int, d: int) -> dict[str, int]:
        """Multiply-adds by part; see ``models/blocks``."""
        parts = {
            "modulation": k * d * (6 if self.gated else 4) * d,
            "attention": self_macs(n, d),
            "mlp": mlp_macs(self.mlp, d, self.mlp_ratio, n),
        }
        if self.uses == "both" and m:
            parts["cross"] = cross_macs(n, m, d)
        return parts
