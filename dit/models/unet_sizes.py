"""The sizes of published U-Nets, and small ones.

``DDPM-32``: Ho et al. 2020, appendix B, for CIFAR-10: 35.7M parameters. ``ADM-64``, ``ADM-128``,
``ADM-256``: Dhariwal & Nichol 2021, table 12, for ImageNet with classes: 296M, 422M, 554M. ``SD-1.5``,
as 1.1 to 1.4, ``SD-2.1`` and ``SDXL`` draw from a text: 859,520,964, 865,910,724 and 2,567,463,684
parameters, exactly (Rombach et al. 2022, Podell et al. 2023).
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
    "transformer": None,
    "linear_projection": True,
    "context_dim": None,
    "pooled_dim": None,
    "null": "learned",
    "pixel_size": None,
}
LATENT = {  # of diffusion in the latents of an autoencoder, told by a text
    "width": 320,
    "depth": 2,
    "scale_shift": False,
    "resblock_updown": False,
    "null": "zero",
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
    "SD-1.5": LATENT
    | {
        "multipliers": (1, 2, 4, 4),
        "attention_levels": (0, 1, 2),
        "transformer": 1,
        "heads": 8,
        "head_size": None,
        "linear_projection": False,
        "context_dim": 768,
    },
    "SD-2.1": LATENT
    | {
        "multipliers": (1, 2, 4, 4),
        "attention_levels": (0, 1, 2),
        "transformer": 1,
        "context_dim": 1024,
    },
    "SDXL": LATENT
    | {
        "multipliers": (1, 2, 4),
        "attention_levels": (1, 2),
        "transformer": (1, 2, 10),
        "context_dim": 2048,
        "pooled_dim": 1280,
        "pixel_size": 8,
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
