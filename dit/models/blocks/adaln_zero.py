"""The block of the original DiT: adaptive layer norms and gates that start at zero."""

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
    mlp_norm_eps: Tiny | None = None,
) -> AdaptiveBlock:
    """``mlp_norm_eps`` is for weights made with another epsilon in the second norm."""
    return AdaptiveBlock(
        heads=heads,
        mlp_ratio=mlp_ratio,
        dtype=dtype,
        kernel=attention,
        gated=True,
        qk_norm=qk_norm,
        eps=norm_eps,
        mlp_eps=norm_eps if mlp_norm_eps is None else mlp_norm_eps,
    )
