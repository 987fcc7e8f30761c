"""The sizes of the DiT paper (Peebles & Xie 2023, table 1)."""

from __future__ import annotations

from dit.config import suggest
from dit.types import UserError

SIZES = {  # depth, width, heads
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}


def parse(size: str) -> dict[str, int]:
    """``"XL/2"`` to depth, width, heads and patch; UserError for a name that is not there."""
    name, _, patch = size.partition("/")
    if name not in SIZES or not patch.isdecimal() or int(patch) < 1:
        known = [f"{s}/{p}" for s in SIZES for p in (2, 4, 8)]
        raise UserError(f"no size {size!r}: {suggest(size, known)} (any patch size works)")
    depth, width, heads = SIZES[name]
    return {"depth": depth, "width": width, "heads": heads, "patch": int(patch)}
