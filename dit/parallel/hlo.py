"""What a compiled program does, read from its HLO text: loops, collectives, the compiler's cycles.

XLA's own cost analysis counts the body of a loop once. Here a program is walked from its entry, and the
contents of a loop count as often as the loop runs. The text comes from ``compiled.as_text()``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from dit.parallel.hlo_text import Instruction, parse, received_bytes, shape_bytes
from dit.parallel.mesh import slices
from dit.parallel.trips import trips

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Megascale's names; any other transfer is from one slice to another.
BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A communication, and how often it happens in one step.

    ``bytes``: of one occurrence on one device, the output of an all-gather or the input of a reduction.
    ``axes``: the mesh axes it runs along, or ``slices``. ``name``: the operation of the model that it
    comes from. ``overlapped``: it is asynchronous, so that computation may hide it.
    """

    kind: str
    bytes: int
    shape: str
    axes: tuple[str, ...]
    group: int
    times: int
    name: str
    overlapped: bool

    @property
    def total(self) -> int:
        """Bytes a step."""
        return self.bytes * self.times


Step = tuple[Instruction, int, tuple[str, ...]]


def read(text: str) -> list[Step]:
    """Each executed instruction of a program, how often it runs, and the fusions that contain it."""
    return list(walk(*parse(text)))


def walk(entry: str, computations: dict[str, list[Instruction]]) -> Iterator[Step]:
    """Each executed instruction, how often it runs, and the fusions that contain it.

    Includes both branches of a conditional, and asynchronous calls.
    """
    by_name = {name: {line.name: line for line in lines} for name, lines in computations.items()}

    def visit(name: str, times: int, inside: tuple[str, ...]):
        for line in computations.get(name, ()):
            yield line, times, inside
            if line.opcode == "while":
                count = trips(line, name, by_name)
                yield from visit(line.called("body"), times * count, inside)
            elif line.opcode == "fusion":
                yield from visit(line.called("calls"), times, (*inside, line.called("calls")))
            elif line.opcode in ("call", "async-start"):
                target = line.called("to_apply") or line.called("calls")
                yield from visit(target, times, inside)
            elif line.opcode == "conditional":
                listed = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
                names = re.findall(r"[\w.\-]+", listed.group(1)) if listed else []
                names += [
                    n for n in map(line.called, ("true_computation", "false_computation")) if n
                ]
                for branch in names:
                    yield from visit(branch, times, inside)

    return visit(entry, 1, ())


def collectives(program: Sequence[Step], mesh: Mesh) -> list[Collective]:
    """The communications of a program over ``mesh``, the largest first.

    The parts of an asynchronous communication, in fusions that share a channel, count as one. A
    reduction whose result is split at once (XLA's fusion ``all-reduce-scatter``) is a reduce-scatter. On
    several TPU slices the program is that of one slice, and the hosts carry the traffic between slices:
    it runs along the axis ``slices``, which is not an axis of the mesh.
    """
    parts = len(slices(list(mesh.devices.flat)))
    shape = {axis: n // parts if axis == "data" else n for axis, n in mesh.shape.items()}
    groups = _axis_groups(shape)
    found: dict[tuple, Collective] = {}
    for line, times, inside in program:
        between = line.opcode == "send" and re.search(
            r'_xla_megascale_transfer_type="(\w+)"', line.rest
        )
        if between:
            kind = BETWEEN_SLICES.get(between.group(1), "collective-permute")
            axes, members = ("slices",), parts
        else:
            kind = next((k for k in KINDS if line.opcode in (k, f"{k}-start")), None)
            if kind is None:
                continue
            axes, members = _axes(line.rest, groups, shape)
        size = max(shape_bytes(line.shape)) if between else received_bytes(line)
        # An instruction shows what a device receives; it passes only its own share to its host.
        if kind == ("all-gather" if between else "reduce-scatter"):
            size *= members
        elif kind == "all-reduce" and any("all-reduce-scatter" in name for name in inside):
            kind = "reduce-scatter"
        channel = re.search(r"channel_id=(\d+)", line.rest)
        source = re.search(r'op_name="([^"]*)"', line.rest)
        collective = Collective(
            kind=kind,
            bytes=size,
            shape=re.sub(r"\{[^}]*\}|/\*[^*]*\*/", "", line.shape),
            axes=axes,
            group=members,
            times=times,
            name=source.group(1) if source else line.name,
            overlapped=(bool(inside) and kind != "reduce-scatter")
            or line.opcode.endswith(("-start", "send")),
        )
        shared = channel and inside and kind != "reduce-scatter"
        key = (kind, channel.group(1) if shared else (*inside, line.name))
        if key not in found or found[key].times < times:
            found[key] = collective
    return sorted(found.values(), key=lambda c: -c.total)


def _axis_groups(shape: dict[str, int]) -> dict[frozenset, tuple[str, ...]]:
    """The axes of a mesh of this shape that the groups of device positions run along."""
    positions = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    names, found = list(shape), {}
    wide = [name for name in names if shape[name] > 1]
    for n in range(1, len(wide) + 1):
        for chosen in itertools.combinations(wide, n):
            kept = [i for i, name in enumerate(names) if name not in chosen]
            moved = positions.transpose(*kept, *map(names.index, chosen))
            rows = moved.reshape(-1, math.prod(shape[name] for name in chosen))
            found[frozenset(frozenset(row) for row in rows.tolist())] = chosen
    return found


def _axes(rest: str, groups: dict, shape: dict[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes and the size of the groups that communicate."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
    if pairs:
        ends = [tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)", pairs.group(0))]
        where = np.stack(np.unravel_index(np.asarray(ends).ravel(), tuple(shape.values())), -1)
        moved = (where[::2] != where[1::2]).any(0)
        axes = tuple(name for name, m in zip(shape, moved, strict=True) if m)
        return axes, math.prod(shape[a] for a in axes)
    rows = replica_groups(rest, math.prod(shape.values()))
    axes = groups.get(frozenset(frozenset(row) for row in rows.tolist()), ("other",))
    return axes, rows.shape[1]


def replica_groups(rest: str, devices: int) -> np.ndarray:
    """The groups of device positions, one per row, from any of XLA's three notations."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = {k: int(n) for k, n in re.findall(r"'([^']*)'=(\d+)", found.group(1))}
        chosen = re.findall(r"'([^']*)'", found.group(2))
        order = [k for k in sizes if k not in chosen] + chosen
        grid = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        grid = grid.transpose([list(sizes).index(k) for k in order])
        return grid.reshape(-1, math.prod(sizes[k] for k in chosen))
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        rows, base, order = (
            [int(n) for n in part.split(",")] if part else None for part in found.groups()
        )
        grid = np.arange(math.prod(base)).reshape(base)
        return (grid.transpose(order) if order else grid).reshape(rows)
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return np.array(
            [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", found[1])]
        )
    return np.arange(devices)[None]


def cycles(program: Sequence[Step]) -> float:
    """The compiler's ``estimated_cycles`` of every TPU instruction, as often as it runs; 0 elsewhere."""
    total = 0
    for line, times, inside in program:
        if not inside and (found := re.search(r'"estimated_cycles":"(\d+)"', line.rest)):
            total += int(found.group(1)) * times
    return float(total)


def kernels(program: Sequence[Step]) -> dict[str, int]:
    """Custom calls into Pallas, Triton or a library, by target and operation, and how often each."""
    counted: dict[str, int] = {}
    for line, times, _ in program:
        target = re.search(
            r'custom_call_target="(tpu_custom_call|__gpu\$\S*|__cudnn\S*)"', line.rest
        )
        if line.opcode == "custom-call" and target:
            name = re.search(r'op_name="(?:[^"]*/)?([^"/]*)"', line.rest)
            key = f"{target.group(1)} {name.group(1) if name else line.name}"
            counted[key] = counted.get(key, 0) + times
    return counted
