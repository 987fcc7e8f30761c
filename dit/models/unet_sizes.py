"""The sizes of published U-Nets, and small ones.

``DDPM-32``: Ho et al. 2020, appendix B, for CIFAR-10: 35.7M parameters. ``ADM-64``, ``ADM-128``,
``ADM-256``: Dhariwal & Nichol 2021, table 12, for ImageNet with classes: 296M, 422M, 554M.
"""

from __future__ import annotations

from typing import Any

from dit.config import suggest
from dit.types import UserError

DEFAULTS = {
    "attention_levels": (),
    "heads": None,
    "head_size": 64,
    "scale_shift": True,
    "resblock_updown": True,
    "norm_groups": 32,
}
SIZES: dict[str, dict[str, Any]] = {
    "DDPM-32": {
        "width": 128,
        "multipliers": (1, 2, 2, 2),
        "depth": 2,
        "attention_levels": (1,),
        "heads": 1,
        "head_size": None,
        "scale_shift": False,
        "resblock_updown": False,
    },
    "ADM-64": {
        "width": 192,
        "multipliers": (1, 2, 3, 4),
        "depth": 3,
        "attention_levels": (1, 2, 3),
    },
    "ADM-128": {
        "width": 256,
        "multipliers": (1, 1, 2, 3, 4),
        "depth": 2,
        "attention_levels": (2, 3, 4),
        "heads": 4,
        "head_size": None,
    },
    "ADM-256": {
        "width": 256,
        "multipliers": (1, 1, 2, 2, 4, 4),
        "depth": 2,
        "attention_levels": (3, 4, 5),
    },
    "S": {
        "width": 32,
        "multipliers": (1, 2),
        "depth": 1,
        "attention_levels": (1,),
        "head_size": 32,
        "norm_groups": 8,
    },
}


def parse(size: str) -> dict[str, Any]:
    """The numbers of a size; UserError for a name that is not there."""
    if size not in SIZES:
        raise UserError(f"no size {size!r}: {suggest(size, list(SIZES))}")
    return SIZES[size]
