"""What to change when a train step does not fit, from the account of its memory.

The compiler says how much memory is needed. From that follows the ratio of what is needed besides the
state to gradients and activations by formula, and other meshes, remat policies and batches are assumed
to have the same ratio. Frozen weights that every device has whole are split over devices if nothing
less is enough. What is advised keeps less on every count than what was tried, so that following
the advice never leads in a circle.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from dit.parallel.chips import TPUS, name_of, shapes
from dit.parallel.mesh import AXES
from dit.parallel.topology import Topology
from dit.preflight.account import POLICIES, Account, Choice
from dit.preflight.report import gib

STEPS = ("dots", "full")  # policies that are advised
LARGEST = 2**14  # devices, of a kind that has no table of slices


def advise(needed: int | float, tried: Choice, account: Account, where: Topology) -> str:
    """One line: the least change that should fit, or what would be large enough."""
    tried = dataclasses.replace(tried, mesh={axis: tried.size(axis) for axis in AXES})
    ratio = overhead(needed, tried, account)
    split = dataclasses.replace(account, frozen=account.frozen + account.held, held=0)
    for own in (account, split) if account.held else (account,):
        others = changes(tried, own, where, every=own is split)
        found = next((c for c in others if need(c, own, ratio) <= where.hbm), None)
        if found is not None:
            said = ["--config.mesh.whole=()"] if own is split else []
            said += [f"--mesh={mesh_text(found)}"] if found.mesh != tried.mesh else []
            said += [f"--remat={found.remat}"] if found.remat != tried.remat else []
            said += [f"--batch={found.batch}"] if found.batch != tried.batch else []
            about = gib(need(found, own, ratio))
            return f"try {' '.join(said)} (about {about} a device, by estimate)"
    account = split
    least = min(changes(tried, account, where, every=True), key=lambda c: need(c, account, ratio))
    state, gradients, kept = account.parts(least)
    return (
        f"no mesh, remat policy or batch is enough: with {mesh_text(least)}, remat {least.remat} and "
        f"a batch of {least.batch} the state still takes {gib(state)} a device, gradients "
        f"{gib(gradients)} and activations {gib(kept)}; {enough(tried, account, where, ratio)}"
    )


def overhead(needed: int | float, tried: Choice, account: Account) -> float:
    """What the compiler needs beside the state, over gradients and activations; at least 1."""
    state, gradients, kept = account.parts(tried)
    return max(1.0, (needed - state) / (gradients + kept))


def need(choice: Choice, account: Account, ratio: float) -> float:
    """Bytes a device."""
    state, gradients, kept = account.parts(choice)
    return state + ratio * (gradients + kept)


def changes(
    tried: Choice, account: Account, where: Topology, every: bool = False
) -> Iterator[Choice]:
    """What keeps less than ``tried`` on no count more, the least change first: mesh, remat, batch.

    ``every``: with ``tried`` itself.
    """
    n = len(where.devices)
    names = list(POLICIES)
    steps = [p for p in STEPS if p in account.policies]
    policies = [tried.remat, *(p for p in steps if names.index(p) > names.index(tried.remat))]
    meshes = [dict(tried.mesh)]
    whole = dict.fromkeys(AXES, 1)
    for kept in (("context", "tensor"), ()):  # all other devices share the state
        sharded = whole | {axis: tried.size(axis) for axis in kept} | {"data": where.slices}
        sharded["fsdp"] = n // math.prod(sharded.values())
        more = sharded["fsdp"] * sharded["tensor"] >= tried.size("fsdp", "tensor")
        if sharded not in meshes and more:
            meshes.append(sharded)
    batch = tried.batch
    while batch >= 1:
        for remat in policies:
            for mesh in meshes:
                choice = Choice(mesh, remat, batch)
                unit = choice.size("data", "fsdp") * account.accumulate
                if batch % unit == 0 and (every or choice != tried):
                    yield choice
        batch = batch // 2 if batch % 2 == 0 else 0


def enough(tried: Choice, account: Account, where: Topology, ratio: float) -> str:
    """The smallest slice of the same chip, or number of devices, that should hold it."""

    def fits(devices: int) -> bool:
        context, tensor = tried.size("context"), tried.size("tensor")
        rest = devices // (context * tensor)
        if rest < 1 or devices % (context * tensor):
            return False
        unit = rest * account.accumulate
        batch = max(unit, tried.batch // unit * unit)
        mesh = {"data": 1, "fsdp": rest, "context": context, "tensor": tensor}
        return need(Choice(mesh, account.policies[-1], batch), account, ratio) <= where.hbm

    kind, now = where.kind, len(where.devices)
    if kind not in TPUS:
        counts = [now * 2**k for k in range(1, 15) if now * 2**k <= LARGEST]
        found = next((n for n in counts if fits(n)), None)
        return f"{found} devices would be, by estimate" if found else "nor are more devices"
    each = TPUS[kind].devices
    larger = [shape for shape in shapes(kind) if math.prod(shape) * each > now // where.slices]
    found = next((shape for shape in larger if fits(math.prod(shape) * each)), None)
    if found is not None:
        name = f"{kind}:{name_of(found)}"
        return f"the smallest slice that is enough is {name} (by estimate, fully sharded)"
    return f"no slice of {kind} is enough; take a chip with more memory"


def mesh_text(choice: Choice) -> str:
    """As ``--mesh`` takes it."""
    return ",".join(f"{axis}={choice.mesh[axis]}" for axis in AXES if choice.size(axis) > 1) or "dp"
