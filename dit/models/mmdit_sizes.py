"""The published networks of the MMDiT family, by what ``models/mmdit.py`` takes: see NETWORKS.md."""

from __future__ import annotations

from typing import Any

from dit.config import suggest
from dit.models.mmdit_positions import LAYOUTS
from dit.types import UserError

DEFAULTS = {
    "dual_depth": 0,
    "single_depth": 0,
    "patch": 2,
    "context_dim": None,
    "context_norm": False,
    "context_ends": None,
    "pooled_dim": None,
    "guidance_input": False,
    "null": "learned",
    "mlp": "gelu",
    "mlp_ratio": 4.0,
    "qk_norm": True,
    "bias": True,
    "shared_modulation": False,
    "positions": "rope",
    "position_table": None,
    "rope_axes": None,
    "rope_theta": 10000.0,
}

# Nothing is known of FLUX's null condition; SD3's are zeros (Esser et al. 2024, B.3).
SD3 = {
    "context_dim": 4096,
    "pooled_dim": 2048,
    "context_ends": True,
    "positions": "sincos",
    "position_table": (192, 64),
    "null": "zero",
}
FLUX1 = {
    "depth": 19,
    "single_depth": 38,
    "width": 3072,
    "heads": 24,
    "context_dim": 4096,
    "pooled_dim": 768,
    "rope_axes": (16, 56, 56),
    "null": "zero",
}
FLUX2 = {
    "patch": 1,
    "guidance_input": False,
    "mlp": "swiglu",
    "mlp_ratio": 4.5,
    "bias": False,
    "shared_modulation": True,
    "positions": "rope_text",
    "rope_axes": (32, 32, 32, 32),
    "rope_theta": 2000.0,
    "null": "zero",
}
SIZES: dict[str, dict[str, Any]] = {
    "SD3-medium": SD3 | {"depth": 24, "width": 1536, "heads": 24, "qk_norm": False},
    "SD3.5-medium": SD3
    | {"depth": 24, "dual_depth": 13, "width": 1536, "heads": 24, "position_table": (384, 64)},
    "SD3.5-large": SD3 | {"depth": 38, "width": 2432, "heads": 38},
    "FLUX.1-dev": FLUX1 | {"guidance_input": True},
    "FLUX.1-schnell": FLUX1,
    "FLUX.2-dev": FLUX2
    | {"depth": 8, "single_depth": 48, "width": 6144, "heads": 48}
    | {"context_dim": 15360, "guidance_input": True},
    "FLUX.2-klein-9B": FLUX2
    | {"depth": 8, "single_depth": 24, "width": 4096, "heads": 32, "context_dim": 12288},
    "FLUX.2-klein-4B": FLUX2
    | {"depth": 5, "single_depth": 20, "width": 3072, "heads": 24, "context_dim": 7680},
    "Qwen-Image": {
        "depth": 60,
        "width": 3072,
        "heads": 24,
        "context_dim": 3584,
        "context_norm": True,
        "context_ends": False,
        "positions": "msrope",
        "rope_axes": (16, 56, 56),
        "null": "zero",
    },
}


def parse(size: str) -> dict[str, Any]:
    """The numbers of a size; UserError for a name that is not there."""
    if size not in SIZES:
        raise UserError(f"no size {size!r}: {suggest(size, list(SIZES))}")
    return SIZES[size]


def check(chosen: dict[str, Any]) -> None:
    """Raise UserError for numbers of blocks, channels and positions that do not fit together."""
    depth, width, heads = (chosen[name] for name in ("depth", "width", "heads"))
    if width % heads:
        raise UserError(f"got width={width} and heads={heads}; heads must divide the width")
    if chosen["positions"] not in LAYOUTS:
        known = suggest(chosen["positions"], list(LAYOUTS))
        raise UserError(f"no positions {chosen['positions']!r}: {known}")
    if "sincos" in chosen["positions"] and width % 4:
        raise UserError(f"got width={width}; sincos positions need a multiple of 4")
    ends = bool(chosen["context_ends"])
    if ends and chosen["single_depth"]:
        raise UserError("got context_ends=True and single blocks, which read the text; give one")
    if chosen["dual_depth"] > depth - ends:
        raise UserError(
            f"got dual_depth={chosen['dual_depth']} of depth={depth} double blocks; expected at most "
            f"{depth - ends}"
        )
    if chosen["shared_modulation"] and (chosen["dual_depth"] or ends):
        raise UserError(
            "got shared_modulation with dual or context_ends; a modulation has one size"
        )
