"""LightningDiT (Yao et al. 2025): a DiT with RMSNorm, SwiGLU and rotary positions beside the sinusoids.

The network is ``dit.py``'s with block ``modern``. Angles turn with y and x alone, half of a head's
channels each (the authors' code, after EVA-02), and the published weights have no QK-norm, which the
authors advise for long runs. The published data are 16 x 16 latents of 32 channels (VA-VAE).
"""

from __future__ import annotations

from typing import Literal

from dit.models import dit, sizes
from dit.models.dit import DiT
from dit.types import Count, Positive, Tiny, UserError

SIZES = {  # depth, width, heads
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "1p0B": (24, 1536, 24),
    "1p6B": (28, 1792, 28),
}


def build(
    *,
    size: str | None = None,
    depth: Count | None = None,
    width: Count | None = None,
    heads: Count | None = None,
    patch: Count | tuple[Count, Count, Count] | None = None,
    in_channels: Count,
    num_classes: Count | None = None,
    context_dim: Count | None = None,
    qk_norm: bool = False,
    mlp_ratio: Positive = 4.0,
    norm_eps: Tiny = 1e-6,
    rope_theta: Positive = 10000.0,
    time_scale: Positive = 1.0,
    remat: str = "none",
    unroll: Literal["auto"] | bool | Count = "auto",
    dtype: str = "float32",
    attention: str = "auto",
) -> DiT:
    """A published size (``"XL/1"``), or one of its own numbers, which take precedence; ``patch``: 1.

    Raises UserError for numbers that do not fit together: 4 divides the channels of a head.
    """
    own = {"depth": depth, "width": width, "heads": heads, "patch": patch}
    chosen = {"patch": 1} | (sizes.parse(size, SIZES, (1, 2)) if size is not None else {})
    chosen |= {k: v for k, v in own.items() if v is not None}
    missing = [k for k in own if k not in chosen]
    if missing:
        raise UserError(f"give a size, such as 'XL/1', or also: {', '.join(missing)}")
    width, heads = chosen["width"], chosen["heads"]
    if width % (4 * heads):
        raise UserError(
            f"got width={width} and heads={heads}; expected heads of a multiple of 4 channels, half of "
            "which turn with y and half with x"
        )
    side = width // heads // 2
    return dit.build(
        **chosen,
        in_channels=in_channels,
        num_classes=num_classes,
        context_dim=context_dim,
        block="modern",
        positions="sincos+rope",
        rope_axes=(0, side, side),
        qk_norm=qk_norm,
        mlp_ratio=mlp_ratio,
        norm_eps=norm_eps,
        rope_theta=rope_theta,
        time_scale=time_scale,
        remat=remat,
        unroll=unroll,
        dtype=dtype,
        attention=attention,
    )
