"""The published networks of the Wan family, by what ``models/wan.py`` takes: see NETWORKS.md."""

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
}
TEXT = {"context_dim": 4096, "null": "zero"}
FOURTEEN = TEXT | {"depth": 40, "width": 5120, "heads": 40, "mlp_ratio": 13824 / 5120}
KNOWN = {"concat_channels": 20}  # a mask of the known frames, four a latent, and their latents
SIZES: dict[str, dict[str, Any]] = {
    "Wan2.1-T2V-1.3B": TEXT | {"depth": 30, "width": 1536, "heads": 12, "mlp_ratio": 8960 / 1536},
    "Wan2.1-T2V-14B": FOURTEEN,
    "Wan2.1-I2V-14B": FOURTEEN | KNOWN | {"image_context": (257, 1280)},
    "Wan2.1-FLF2V-14B": FOURTEEN | KNOWN | {"image_context": (514, 1280), "image_positions": True},
    "Wan2.2-T2V-A14B": FOURTEEN,
    "Wan2.2-I2V-A14B": FOURTEEN | KNOWN,
    "Wan2.2-TI2V-5B": TEXT | {"depth": 30, "width": 3072, "heads": 24, "mlp_ratio": 14336 / 3072},
}


def parse(size: str) -> dict[str, Any]:
    """The numbers of a size; UserError for a name that is not there."""
    if size not in SIZES:
        raise UserError(f"no size {size!r}: {suggest(size, list(SIZES))}")
    return SIZES[size]
