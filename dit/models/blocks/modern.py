"""adaLN-Zero with RMSNorm, SwiGLU, QK-norm and rotary positions (Yao et al. 2025, LightningDiT)."""

from __future__ import annotations

from dit.models.adaptive import AdaptiveBlock
from dit.types import Count, Positive, Tiny


def build(
    *,
    heads: Count,
    dtype: str = "float32",
    attention: str = "auto",
    mlp_ratio: Positive = 4.0,
    qk_norm: bool = True,
    norm_eps: Tiny = 1e-6,
) -> AdaptiveBlock:
    """The SwiGLU's hidden size is two thirds of ``mlp_ratio * width``: ``int(8 D / 3)`` by default."""
    return AdaptiveBlock(
        heads=heads,
        mlp_ratio=mlp_ratio,
        dtype=dtype,
        kernel=attention,
        gated=True,
        norm="rms",
        affine=True,
        mlp="swiglu",
        qk_norm=qk_norm,
        eps=norm_eps,
        mlp_eps=norm_eps,
        positions="rope",
    )
