"""The TPU slices that can be asked for: one table for all launchers.

From Google's tables of TPU configurations: v5e and v6e come as rectangles of up to 16x16 chips; v4, v5p
and tpu7x (Ironwood) as boxes, small ones first, and then whole cubes of 4x4x4 chips, the shorter sides
first. Standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Family:
    """``prefix``: of the accelerator type, which counts ``cores`` a chip; ``label``: of GKE's nodes.

    ``small``: the shapes that are not whole cubes; ``cubes``: the most of those. ``alone``: the most
    chips that one host can hold. ``runtime``: the software of a TPU VM, "" where there is none.
    """

    prefix: str
    label: str
    cores: int
    small: tuple[str, ...]
    cubes: int
    alone: int
    runtime: str
    ordered: bool = True


RECTANGLES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
BOXES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
FAMILIES = {
    "v4": Family(
        "v4", "tpu-v4-podslice", 2, BOXES, 64, 4, runtime="tpu-ubuntu2204-base", ordered=False
    ),
    "v5e": Family(
        "v5litepod", "tpu-v5-lite-podslice", 1, RECTANGLES, 0, 8, runtime="v2-alpha-tpuv5-lite"
    ),
    "v5p": Family("v5p", "tpu-v5p-slice", 2, BOXES, 96, 4, runtime="v2-alpha-tpuv5"),
    "v6e": Family("v6e", "tpu-v6e-slice", 1, RECTANGLES, 0, 8, runtime="v2-alpha-tpuv6e"),
    "tpu7x": Family("tpu7x", "tpu7x", 2, ("1x1x1", *BOXES), 144, 4, runtime=""),
}
PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: its chips, its hosts, and the chips of a host."""

    chips: int
    hosts: int
    per_host: int


def find(chip: str, topology: str) -> Slice:
    """The slice of this shape; ValueError for one that does not exist, with what does."""
    family = FAMILIES[chip]
    sides = (
        [int(n) for n in topology.split("x")] if re.fullmatch(r"[0-9]+(x[0-9]+)*", topology) else []
    )
    if topology not in family.small and not _whole_cubes(family, sides):
        raise ValueError(f"got the {chip} topology {topology!r}; expected {_known(family, sides)}")
    return _slice(family, math.prod(sides))


def of_type(name: str) -> tuple[str, Slice]:
    """The chip and the slice of an accelerator type, such as v5litepod-256 or v5p-128.

    ValueError for one that does not exist, or that no TPU VM has.
    """
    prefix, _, count = name.partition("-")
    chip = next((c for c, family in FAMILIES.items() if family.prefix == prefix), None)
    if chip is None:
        known = ", ".join(f"{f.prefix}-N" for f in FAMILIES.values() if f.runtime)
        raise ValueError(f"got the type {name!r}; expected one of {known}")
    family = FAMILIES[chip]
    if not family.runtime:
        raise ValueError(f"no TPU VM has {chip}: it comes through GKE (launch/gke.py --tpu={chip})")
    small = [math.prod(int(n) for n in shape.split("x")) for shape in family.small]
    chips, rest = divmod(int(count), family.cores) if re.fullmatch("[0-9]+", count) else (0, 0)
    cubes, part = divmod(chips, 64)
    if rest or not (chips in small or (part == 0 and 0 < cubes <= family.cubes)):
        counts = ", ".join(str(n * family.cores) for n in small)
        if family.cubes:
            cube = 64 * family.cores
            counts += f", or {cube} times 1 to {family.cubes}"
        raise ValueError(f"got the type {name!r}; expected {prefix}-N with N of {counts}")
    return chip, _slice(family, chips)


def _slice(family: Family, chips: int) -> Slice:
    per_host = chips if chips <= family.alone else PER_HOST
    return Slice(chips, chips // per_host, per_host)


def _whole_cubes(family: Family, sides: list[int]) -> bool:
    return (
        family.cubes > 0
        and len(sides) == 3
        and all(side > 0 and side % 4 == 0 for side in sides)
        and math.prod(side // 4 for side in sides) <= family.cubes
        and (not family.ordered or sides == sorted(sides))
    )


def _known(family: Family, sides: list[int]) -> str:
    turned = "x".join(map(str, sorted(sides)))
    if turned in family.small or (sides != sorted(sides) and _whole_cubes(family, sorted(sides))):
        return f"the shorter sides first: {turned}"
    known = ", ".join(family.small)
    if family.cubes:
        known += f", or sides that are multiples of 4, at most {family.cubes} cubes of 4x4x4"
    return known
