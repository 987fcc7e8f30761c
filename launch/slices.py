"""The TPU slices of ``dit/parallel/chips.py``, as Google's clouds name them: for all launchers.

Standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from dit.parallel.chips import name_of, shapes, slice_shape


@dataclasses.dataclass(frozen=True)
class Family:
    """``prefix``: of the accelerator type, which counts ``cores`` a chip; ``label``: of GKE's nodes.

    ``alone``: the most chips that one host can hold. ``runtime``: the software version of a TPU VM, ""
    if no TPU VM has this chip.
    """

    prefix: str
    label: str
    cores: int
    alone: int
    runtime: str


FAMILIES = {
    "v4": Family("v4", "tpu-v4-podslice", 2, 4, "tpu-ubuntu2204-base"),
    "v5e": Family("v5litepod", "tpu-v5-lite-podslice", 1, 8, "v2-alpha-tpuv5-lite"),
    "v5p": Family("v5p", "tpu-v5p-slice", 2, 4, "v2-alpha-tpuv5"),
    "v6e": Family("v6e", "tpu-v6e-slice", 1, 8, "v2-alpha-tpuv6e"),
    "tpu7x": Family("tpu7x", "tpu7x", 2, 4, ""),
}
PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: its chips, its hosts, and the chips per host."""

    chips: int
    hosts: int
    per_host: int


def find(chip: str, topology: str) -> Slice:
    """The slice of this shape; ValueError, with the existing shapes, if there is none."""
    return _slice(chip, math.prod(slice_shape(chip, topology)))


def of_type(name: str) -> tuple[str, Slice]:
    """The chip and the slice of an accelerator type, such as v5litepod-256 or v5p-128.

    ValueError for one that does not exist, or that no TPU VM has.
    """
    prefix, _, count = name.partition("-")
    chip = next((c for c, family in FAMILIES.items() if family.prefix == prefix), None)
    if chip is None:
        known = ", ".join(f"{f.prefix}-N" for f in FAMILIES.values() if f.runtime)
        raise ValueError(f"got the type {name!r}; expected one of {known}")
    if not FAMILIES[chip].runtime:
        raise ValueError(f"no TPU VM has {chip}: it comes through GKE (launch/gke.py --tpu={chip})")
    cores = FAMILIES[chip].cores
    counts = {math.prod(shape) * cores: shape for shape in shapes(chip)}
    wanted = int(count) if re.fullmatch("[0-9]+", count) else 0
    if wanted not in counts:
        near = sorted(sorted(counts, key=lambda n: abs(n - wanted))[:4])
        some = ", ".join(f"{prefix}-{n} ({name_of(counts[n])})" for n in near)
        raise ValueError(f"got the type {name!r}; expected one such as {some}")
    return chip, _slice(chip, wanted // cores)


def _slice(chip: str, chips: int) -> Slice:
    per_host = chips if chips <= FAMILIES[chip].alone else PER_HOST
    return Slice(chips, chips // per_host, per_host)
