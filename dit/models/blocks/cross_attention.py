"""Cross-attention to time, label and context as a sequence (the DiT paper's ablation)."""

from __future__ import annotations

from dit.models.plain import PlainBlock
from dit.types import Count, Positive, Tiny


def build(
    *,
    heads: Count,
    dtype: str = "float32",
    attention: str = "auto",
    mlp_ratio: Positive = 4.0,
    qk_norm: bool = False,
    norm_eps: Tiny = 1e-6,
) -> PlainBlock:
    """Works with any length of context, and with its mask; the condition's tokens carry no position."""
    return PlainBlock(
        heads=heads,
        mlp_ratio=mlp_ratio,
        dtype=dtype,
        kernel=attention,
        uses="sequence",
        qk_norm=qk_norm,
        eps=norm_eps,
    )
