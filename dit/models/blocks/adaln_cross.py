"""adaLN-Zero for time, label and pooled text, cross-attention for the context's tokens.

The block of text-to-image transformers that read a sentence word by word: PixArt-alpha (Chen et al.
2024, sec. 2.3) and, with a norm before the cross-attention, Wan.
"""

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
    """The cross-attention's output starts at zero. Without a context it is ``adaln_zero``."""
    return AdaptiveBlock(
        heads=heads,
        mlp_ratio=mlp_ratio,
        dtype=dtype,
        kernel=attention,
        gated=True,
        qk_norm=qk_norm,
        eps=norm_eps,
        mlp_eps=norm_eps,
        uses="both",
    )
