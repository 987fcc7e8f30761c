"""Adaptive layer norms without gates: the DiT paper's ablation ``adaLN``."""

from __future__ import annotations

from dit.models.adaptive import AdaptiveBlock
from dit.types import Count, Positive, Tiny


def build(
    *,
    heads: Count,
    dtype: str = "float32",
    attention: str = "auto",
    mlp_ratio: Positive = 4.0,
    qk_norm: bool = False,
    norm_eps: Tiny = 1e-6,
) -> AdaptiveBlock:
    """Starts as a plain pre-norm block: shift and scale are zero, the branches are not."""
    return AdaptiveBlock(
        heads=heads,
        mlp_ratio=mlp_ratio,
        dtype=dtype,
        kernel=attention,
        gated=False,
        qk_norm=qk_norm,
        eps=norm_eps,
        mlp_eps=norm_eps,
    )
