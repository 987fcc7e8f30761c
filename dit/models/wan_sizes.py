"""The published networks of Wan and LTX-Video, by what ``models/wan.py`` takes: see NETWORKS.md."""

from __future__ import annotations

from typing import Any

from dit.config import suggest
from dit.types import UserError

DEFAULTS = {
    "patch": 2,
    "context_dim": None,
    "image_context": None,
    "image_positions": False,
    "concat_channels": None,
    "null": "learned",
    "mlp_ratio": 4.0,
    "norm": "layer",
    "cross_norm": True,
    "rope": "axes",
    "qk_norm_eps": None,
}
TEXT = {"context_dim": 4096, "null": "zero"}
FOURTEEN = TEXT | {"depth": 40, "width": 5120, "heads": 40, "mlp_ratio": 13824 / 5120}
KNOWN = {"concat_channels": 20}  # a mask of the known frames, four a latent, and their latents
LTX = TEXT | {"patch": 1, "norm": "rms", "cross_norm": False, "qk_norm_eps": 1e-5}
SIZES: dict[str, dict[str, Any]] = {
    "Wan2.1-T2V-1.3B": TEXT | {"depth": 30, "width": 1536, "heads": 12, "mlp_ratio": 8960 / 1536},
    "Wan2.1-T2V-14B": FOURTEEN,
    "Wan2.1-I2V-14B": FOURTEEN | KNOWN | {"image_context": (257, 1280)},
    "Wan2.1-FLF2V-14B": FOURTEEN | KNOWN | {"image_context": (514, 1280), "image_positions": True},
    "Wan2.2-T2V-A14B": FOURTEEN,
    "Wan2.2-I2V-A14B": FOURTEEN | KNOWN,
    "Wan2.2-TI2V-5B": TEXT | {"depth": 30, "width": 3072, "heads": 24, "mlp_ratio": 14336 / 3072},
    "LTX-Video-0.9-2B": LTX | {"depth": 28, "width": 2048, "heads": 32, "rope": "span"},
    "LTX-Video-0.9.5-2B": LTX | {"depth": 28, "width": 2048, "heads": 32, "rope": "span_causal"},
    "LTX-Video-0.9.7-13B": LTX | {"depth": 48, "width": 4096, "heads": 32, "rope": "span_causal"},
}


def parse(size: str) -> dict[str, Any]:
    """The numbers of a size; UserError for a name that is not there."""
    if size not in SIZES:
        raise UserError(f"no size {size!r}: {suggest(size, list(SIZES))}")
    return SIZES[size]
