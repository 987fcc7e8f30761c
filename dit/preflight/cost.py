"""What a run takes to its end: hours, chip-hours and money, from the predicted time of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def cost(row: Mapping[str, Any], price: float | None, images: int | None) -> dict[str, Any]:
    """Of a report as JSON: ``steps`` to the end, or to ``images``, ``hours``, ``chip_hours``, ``cost``.

    Empty where there is no prediction of time. ``cost`` is None without a price.
    """
    if row["step_seconds"] is None:
        return {}
    steps = math.ceil(images / (row["images"] * row.get("each", 1))) if images else row["steps"]
    hours = steps * row["step_seconds"] / 3600
    spent = hours * row["chips"]
    return {
        "steps_to_end": steps,
        "hours": hours,
        "chip_hours": spent,
        "cost": None if price is None else spent * price,
    }


def line(row: Mapping[str, Any], price: float | None, images: int | None) -> str:
    """The same in words."""
    found = cost(row, price, images)
    if not found:
        return "no prediction of time for these devices, and so none of hours or cost"
    steps, hours, spent = found["steps_to_end"], found["hours"], found["chip_hours"]
    seen = round(steps * row["images"] * row.get("each", 1))
    money = "" if price is None else f", {_plain(found['cost'])} at {price:g} a chip-hour"
    return (
        f"to {seen:,} images ({steps:,} steps): {_plain(hours)} h, "
        f"{_plain(spent)} chip-hours{money} (predicted, without starts, samples and checkpoints)"
    )


def _plain(n: float) -> str:
    """Three digits, or all of a large number's."""
    return f"{n:,.0f}" if n >= 100 else f"{n:.3g}"
