"""Accelerator chips and the slices in which they are rented: one table for preflight and the launchers.

Uses the standard library alone: launchers import it on machines without JAX.

Numbers come from the makers' public specifications. The ``hbm`` of a TPU is what its compiler (libtpu
0.0.52) lets a program use, and ``clock`` the rate of the cycles that the compiler estimates. Links are
one axis of the torus, one way, as in "How to Scale Your Model" (Austin et al. 2025, ch. 2). Slices are
those that Cloud TPU and GKE list, and every slice between the listed cubes with sides that are multiples
of four.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device of a chip has.

    ``hbm``: bytes; ``bandwidth``: bytes a second of it; ``clock``: cycles a second; ``link``: bytes a
    second one way on one ICI link; ``dcn``: bytes a second from one slice to the others. ``devices``:
    JAX devices a chip, which share its links. ``sides``: the longest sides of a slice, which has as
    many dimensions; ``chips``: the most that a slice has.
    """

    hbm: float
    bandwidth: float
    clock: float
    link: float
    dcn: float
    sides: tuple[int, ...]
    chips: int
    devices: int = 1


TPUS = {
    "v4": Chip(30.75 * GIB, 1.2e12, 1.05e9, 4.5e10, 6.25e9, (16, 16, 16), 4096),
    "v5e": Chip(15.75 * GIB, 8.2e11, 1.5e9, 4.5e10, 3.125e9, (16, 16), 256),
    "v5p": Chip(95.73 * GIB, 2.77e12, 1.75e9, 9e10, 6.25e9, (16, 16, 24), 6144),
    "v6e": Chip(31.24 * GIB, 1.64e12, 1.75e9, 9e10, 1.25e10, (16, 16), 256),
    "tpu7x": Chip(94.74 * GIB, 3.69e12, 2.2e9, 4.5e10, 6.25e9, (16, 24, 24), 9216, devices=2),
}
SMALL = {  # slices smaller than a cube, or of a flat torus
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4"),
}
GPUS = {  # bytes of memory, as the driver reports them
    "a100": 85_100_068_864,
    "h100": 84_942_979_072,
    "h200": 151_397_597_184,
    "b200": 191_514_411_008,
}


def shapes(chip: str) -> list[tuple[int, ...]]:
    """Every slice of a TPU chip, the smallest first."""
    tpu = TPUS[chip]
    found = {tuple(map(int, text.split("x"))) for text in SMALL[len(tpu.sides)]}
    if len(tpu.sides) == 3:
        cubes = itertools.product(*(range(4, side + 1, 4) for side in tpu.sides))
        found |= {s for s in cubes if list(s) == sorted(s) and math.prod(s) <= tpu.chips}
    return sorted(found, key=lambda shape: (math.prod(shape), shape[::-1]))


def name_of(shape: tuple[int, ...]) -> str:
    """``4x4x8``."""
    return "x".join(map(str, shape))


def slice_shape(chip: str, text: str) -> tuple[int, ...]:
    """The sides of the slice ``text`` of a TPU chip; a one-line ValueError if there is none."""
    if chip not in TPUS:
        raise ValueError(f"got chip {chip!r}; expected one of {', '.join(TPUS)}")
    known = {name_of(shape): shape for shape in shapes(chip)}
    if text in known:
        return known[text]
    sides = text.split("x")
    if all(side.isascii() and side.isdecimal() for side in sides):
        wanted = math.prod(map(int, sides))

        # the same sides in the usual order, else the slices with the most similar number of chips
        def distance(name: str) -> tuple[bool, float]:
            ratio = math.prod(known[name]) / max(wanted, 1)
            return sorted(name.split("x")) != sorted(sides), abs(math.log(ratio))

        near = sorted(known, key=distance)
    else:
        near = difflib.get_close_matches(text, known, n=3, cutoff=0) or list(known)
    dimensions = len(TPUS[chip].sides)
    raise ValueError(
        f"{chip} has no slice {text!r}; expected {dimensions} sides such as {', '.join(near[:3])}, "
        f"at most {name_of(max(known.values(), key=math.prod))}"
    )
