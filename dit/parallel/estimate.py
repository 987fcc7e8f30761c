"""How long a compiled step would take on a chip: predictions, not timings.

The time is the sum of the compiler's estimated cycles (products, elementwise work and HBM traffic, loops
counted in full) divided by the clock, an analytic term for Pallas calls, and the communication that is
not hidden behind these. A collective of ``B`` bytes over ``g`` devices takes

    all-gather, reduce-scatter: B (g-1)/g / 2W     all-reduce: twice that
    all-to-all: B (g-1)/g / 4 / 2W                 permute: B / W

with ``W`` the speed of one link one way (one torus axis, both directions: no more is assumed). Between
slices it takes the bytes that leave the chip, divided by its share ``D`` of the slower network:

    all-gather, reduce-scatter, all-to-all: B (g-1)/g     all-reduce: twice that     permute: B

Asynchronous collectives hide behind the computation. The others, and the excess of these, are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dit.parallel import hlo
from dit.parallel.hlo import Collective
from dit.parallel.topology import Topology

KERNEL_SHARE = 0.6  # of the peak, which a flash attention kernel is assumed to reach
BETWEEN = {  # the part of the bytes that leaves a chip for other slices, over (g-1)/g
    "all-gather": lambda share: share,
    "reduce-scatter": lambda share: share,
    "all-to-all": lambda share: share,
    "all-reduce": lambda share: 2 * share,
    "collective-permute": lambda share: 1.0,
}
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # matrix products in each kernel of attention


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The seconds of a step by part. ``total`` includes the communication that is not hidden."""

    compiled: float
    kernels: float
    collectives_async: float
    collectives_sync: float

    @property
    def exposed(self) -> float:
        """Communication that nothing hides."""
        busy = self.compiled + self.kernels
        return self.collectives_sync + max(0.0, self.collectives_async - busy)

    @property
    def total(self) -> float:
        """Seconds a step."""
        return self.compiled + self.kernels + self.exposed


def collective_seconds(c: Collective, topology: Topology) -> float:
    """Seconds a step of one collective, over all its occurrences."""
    if c.group <= 1:
        return 0.0
    share, link = (c.group - 1) / c.group, topology.chip.link
    if "slices" in c.axes:
        return c.total * BETWEEN[c.kind](share) / topology.chip.dcn
    seconds = {
        "all-gather": share / (2 * link),
        "reduce-scatter": share / (2 * link),
        "all-reduce": 2 * share / (2 * link),
        "all-to-all": share / 4 / (2 * link),
        "collective-permute": 1 / link,
    }[c.kind]
    return c.total * seconds


def kernel_flops(program: Sequence[hlo.Step], attention_flops: float) -> float:
    """FLOPs inside attention kernels on one device. ``attention_flops``: of one matrix product."""
    products = 0
    for name, times in hlo.kernels(program).items():
        products += times * next((n for part, n in PRODUCTS.items() if part in name), 2)
    return products * attention_flops


def step_time(
    program: Sequence[hlo.Step],
    found: Sequence[Collective],
    topology: Topology,
    attention_flops: float,
) -> StepTime | None:
    """The prediction for a TPU program, None for other devices.

    ``attention_flops``: of one matrix product of one layer's attention on one device, for Pallas.
    """
    if topology.chip is None:
        return None
    inside = kernel_flops(program, attention_flops)
    seconds = [(collective_seconds(c, topology), c.overlapped) for c in found]
    return StepTime(
        compiled=hlo.cycles(program) / topology.chip.clock,
        kernels=inside / (KERNEL_SHARE * topology.peak),
        collectives_async=sum(s for s, hidden in seconds if hidden),
        collectives_sync=sum(s for s, hidden in seconds if not hidden),
    )
