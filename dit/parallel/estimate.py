"""How long a compiled step would take on a chip, and where its memory goes: predictions, not timings.

Time is the sum of the compiler's estimated cycles (products, elementwise work and HBM traffic, loops
counted in full) over the clock, an analytic term for what is inside Pallas calls, and the communication
that does not hide behind them. A collective of ``B`` bytes over ``g`` devices takes

    all-gather, reduce-scatter: B (g-1)/g / 2W     all-reduce: twice that
    all-to-all: B (g-1)/g / 4 / 2W                 permute: B / W

with ``W`` the speed of one link one way (one torus axis, both directions: no more is assumed). Between
slices, over a chip's share ``D`` of the slower network, it takes what leaves the chip, over ``D``:

    all-gather, reduce-scatter, all-to-all: B (g-1)/g     all-reduce: twice that     permute: B

Asynchronous ones hide behind the computation; the others, and what is left over, are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dit.parallel import hlo
from dit.parallel.hlo import Collective
from dit.parallel.topology import Topology

KERNEL_SHARE = 0.6  # of the peak, that a flash attention kernel is taken to reach
BETWEEN = {  # of the bytes, what leaves a chip for other slices, by (g-1)/g
    "all-gather": lambda share: share,
    "reduce-scatter": lambda share: share,
    "all-to-all": lambda share: share,
    "all-reduce": lambda share: 2 * share,
    "collective-permute": lambda share: 1.0,
}
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # matrix products of attention in each of its kernels


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step by part. ``total`` adds to the rest what communication is not hidden."""

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
    """Seconds a step of one collective, all its occurrences."""
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
    """FLOPs on one device inside kernels of attention. ``attention_flops``: of one matrix product."""
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
