"""The device mesh: ``data`` (replicas), ``fsdp`` (sharded parameters), ``context``, ``tensor``.

Every computation is written for the whole mesh and gives the same numbers on one device. A batch is
split over ``data`` and ``fsdp``, its tokens over ``context``, heads and hidden sizes over ``tensor``;
see ``parallel.rules``. The slices of a multi-slice pod are connected by a slower network. They lie along
``data``, so that only gradients travel between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dit.config import suggest
from dit.types import UserError

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")
GROUP = 16  # devices that share a copy of the state
FEW, MANY = 2, 4  # size of a preset's smaller axis, on fewer than 16 devices and on more

PRESETS: dict[str, Callable[[int, int], dict[str, int]]] = {  # of (all devices, slices)
    "dp": lambda n, slices: {"data": -1},
    "fsdp": lambda n, slices: {"data": slices, "fsdp": -1},
    "hsdp": lambda n, slices: {"data": -1, "fsdp": _group(n // slices)},
    "fsdp+tp": lambda n, slices: {"data": slices, "fsdp": -1, "tensor": _lesser(n)},
    "fsdp+context": lambda n, slices: {"data": slices, "fsdp": -1, "context": _lesser(n)},
    "hsdp+context": lambda n, slices: {
        "data": -1,
        "fsdp": _group(n // slices // _lesser(n), GROUP // _lesser(n)),
        "context": _lesser(n),
    },
}


OPTION = f"{', '.join(PRESETS)}, or sizes of axes: data=4,fsdp=64"


def _group(n: int, most: int = GROUP) -> int:
    """How many of ``n`` devices share a copy of the state: ``most`` where it divides n, else half."""
    return most if n % most == 0 and n > most else max(1, n // 2)


def _lesser(n: int) -> int:
    return 1 if n == 1 else FEW if n < 16 else MANY


def preset(name: str, devices: Sequence[jax.Device]) -> dict[str, int]:
    """The axis sizes of a preset on these devices; UserError for an unknown name.

    ``dp``: the batch is split and the state replicated. ``fsdp``: the state is split over all devices
    too. ``hsdp``: the state is split within groups of devices and replicated across them. ``fsdp+tp``
    also splits heads and hidden sizes, ``fsdp+context`` and ``hsdp+context`` tokens.
    """
    if name not in PRESETS:
        raise UserError(f"no mesh preset {name!r}: {suggest(name, list(PRESETS))}")
    return PRESETS[name](len(devices), len(slices(devices)))


def parse_mesh(text: str) -> dict[str, int | str]:
    """Parse ``fsdp`` or ``data=4,fsdp=64`` into sizes for ``make_mesh``; UserError for anything else."""
    if "=" not in text:
        return {"preset": text}
    sizes = {}
    for item in text.split(","):
        axis, _, n = item.partition("=")
        if not n.removeprefix("-").isdecimal():
            raise UserError(f"got mesh {text!r}; expected {OPTION}")
        sizes[axis] = int(n)
    return sizes


def slices(devices: Sequence[jax.Device]) -> set[int]:
    """The indices of the slices that the devices belong to: several only on multi-slice TPU pods."""
    return {getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices}


def make_mesh(
    sizes: Mapping[str, int | str | None], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over ``devices`` (all of them by default), with axes that XLA shards automatically.

    ``sizes``: the number of devices along each of ``AXES``. An axis that is missing or None takes its
    size from the preset ``sizes["preset"]`` if there is one, and else is 1. One axis may be -1, "all
    that are left". Raises UserError for an unknown axis or preset, for sizes that do not multiply to the
    number of devices, for slices that ``data`` is no multiple of, and for what fits on no torus.
    """
    devices = jax.devices() if devices is None else list(devices)
    given = {axis: n for axis, n in sizes.items() if axis != "preset" and n is not None}
    if sizes.get("preset") is not None:
        base = preset(str(sizes["preset"]), devices)
        if -1 in given.values():
            base = {axis: n for axis, n in base.items() if n != -1}
        given = base | given
    for axis in given:
        if axis not in AXES:
            raise UserError(f"unknown mesh axis {axis!r}: {suggest(axis, list(AXES))}")
    shape = [given.get(axis, 1) for axis in AXES]
    shown = _shown(shape)
    if any(n < 1 and n != -1 for n in shape) or shape.count(-1) > 1:
        raise UserError(f"got a mesh of {shown}; expected positive sizes, at most one of them -1")
    fixed = math.prod(n for n in shape if n != -1)
    if len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
        raise UserError(
            f"got a mesh of {shown}, which takes {'a multiple of ' if -1 in shape else ''}{fixed} "
            f"devices; there are {len(devices)}. Set one axis to -1 to use all that are left"
        )
    shape = [len(devices) // fixed if n == -1 else n for n in shape]
    types, parts = (AxisType.Auto,) * len(AXES), len(slices(devices))
    if parts == 1:
        return Mesh(_on_torus(shape, devices), AXES, axis_types=types)
    if shape[0] % parts:
        raise UserError(f"got mesh.data={shape[0]}; expected a multiple of the {parts} slices")
    within, between = [shape[0] // parts, *shape[1:]], [parts, 1, 1, 1]
    grid = mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=types)


def _shown(shape: Sequence[int]) -> str:
    return ", ".join(f"{axis}={n}" for axis, n in zip(AXES, shape, strict=True))


def _on_torus(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the shape of a mesh, each of its axes along whole axes of their torus, if it can.

    Else an axis takes a part of one: 64 of 16x16.
    """
    try:
        return jax.make_mesh(shape, AXES, devices=devices).devices
    except NotImplementedError:
        pass
    try:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, TypeError) as error:  # of what its search ends with: None
        raise UserError(
            f"got a mesh of {_shown(shape)}, which JAX cannot lay on the torus of these {len(devices)} "
            "devices; choose sizes that are products of its sides or divide one of them"
        ) from error


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis of an array over the devices that see different examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of ``tree`` are on; None if they are not on one."""
    sharding = jax.tree.leaves(tree)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def batch_shards(mesh: Mesh) -> int:
    """How many groups of devices see different examples."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raise UserError unless a batch splits evenly over micro-batches and devices."""
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % (shards * accumulate):
        raise UserError(
            f"got batch_size={batch_size}; expected a positive multiple of {shards * accumulate}: "
            f"{shards} devices share a batch, in {accumulate} micro-batch(es)"
        )
