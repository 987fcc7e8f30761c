"""The device mesh: ``data`` (replicas), ``fsdp`` (sharded parameters), ``context``, ``tensor``.

Every computation is written for the whole mesh and gives the same numbers on one device. A batch is
split over ``data`` and ``fsdp``; ``parallel.rules`` says how parameters are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dit.config import suggest
from dit.types import UserError

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over ``devices`` (all of them by default), with axes that XLA shards automatically.

    ``sizes``: how many devices along each of ``AXES``; an axis left out is 1, and one of them may be
    -1, "all that are left". Raises UserError for an unknown axis, or sizes that do not multiply to
    the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    for axis in sizes:
        if axis not in AXES:
            raise UserError(f"unknown mesh axis {axis!r}: {suggest(axis, list(AXES))}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    shown = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, shape, strict=True))
    if any(n < 1 and n != -1 for n in shape) or shape.count(-1) > 1:
        raise UserError(f"got a mesh of {shown}; expected positive sizes, at most one of them -1")
    fixed = math.prod(n for n in shape if n != -1)
    if len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
        raise UserError(
            f"got a mesh of {shown}, which takes {'a multiple of ' if -1 in shape else ''}{fixed} "
            f"devices; there are {len(devices)}. Set one axis to -1 to use all that are left"
        )
    shape = [len(devices) // fixed if n == -1 else n for n in shape]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of an array split over the devices that see different examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raise UserError unless a batch splits evenly over micro-batches and devices."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size < 1 or batch_size % (shards * accumulate):
        raise UserError(
            f"got batch_size={batch_size}; expected a positive multiple of {shards * accumulate}: "
            f"{shards} devices share a batch, in {accumulate} micro-batch(es)"
        )
