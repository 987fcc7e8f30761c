"""Time, label and context as extra tokens before the others (the DiT paper's ablation)."""

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
    """Costs one more token for each token of the condition, which sits at position zero everywhere."""
    return PlainBlock(
        heads=heads,
        mlp_ratio=mlp_ratio,
        dtype=dtype,
        kernel=attention,
        uses="prefix",
        qk_norm=qk_norm,
        eps=norm_eps,
    )
