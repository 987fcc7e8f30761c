"""The sizes of the DiT paper (Peebles & Xie 2023, table 1)."""

from __future__ import annotations

from collections.abc import Mapping

from dit.config import suggest
from dit.types import UserError

SIZES = {  # depth, width, heads
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}


def parse(
    size: str,
    sizes: Mapping[str, tuple[int, int, int]] = SIZES,
    patches: tuple[int, ...] = (2, 4, 8),
) -> dict[str, int]:
    """``"XL/2"`` to depth, width, heads and patch; UserError for a name that is not in ``sizes``.

    ``patches``: those that its message names.
    """
    name, _, patch = size.partition("/")
    if name not in sizes or not patch.isdecimal() or int(patch) < 1:
        known = [f"{s}/{p}" for s in sizes for p in patches]
        raise UserError(f"no size {size!r}: {suggest(size, known)} (any patch size works)")
    depth, width, heads = sizes[name]
    return {"depth": depth, "width": width, "heads": heads, "patch": int(patch)}
