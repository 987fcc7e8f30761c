"""Where activations lie on a mesh, by the logical names of their axes.

The names (``act_batch``, ``act_length``, ...) mean mesh axes under ``flax.linen.logical_axis_rules``
inside ``jax.sharding.use_abstract_mesh``, as a train step sets them (``parallel.rules``). Without
rules, as on one device, the functions here do nothing.
"""

from __future__ import annotations

import math
import warnings

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

WHOLE_HEADS = ("act_batch", "act_length", "act_heads", None)  # b n h d, as the linear maps make it
WHOLE_LENGTH = ("act_batch", None, "act_all_heads", None)  # b n h d, as attention reads it


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The mesh axes that a logical axis is split over, without those of a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    found = dict(nn.get_logical_axis_rules()).get(name) if name else None
    if mesh.empty or found is None:
        return ()
    axes = (found,) if isinstance(found, str) else tuple(found)
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def shards(name: str) -> int:
    """How many parts a logical axis is split into; 1 without a mesh."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in mesh_axes(name))


def partition(shape: tuple[int, ...], names: tuple[str | None, ...]) -> PartitionSpec | None:
    """How an array is split; None without a mesh. A dimension that does not divide stays whole."""
    if jax.sharding.get_abstract_mesh().empty or not nn.get_logical_axis_rules():
        return None
    spec = []
    for size, name in zip(shape, names, strict=True):
        axes = mesh_axes(name)
        if axes and size % shards(name):
            warnings.warn(
                f"{size} along {name} does not divide by the {shards(name)} devices of mesh axes "
                f"{axes}: every one of them computes the whole of it",
                stacklevel=2,
            )
            axes = ()
        spec.append(axes or None)
    return PartitionSpec(*spec)


def constrain(x: Array, *names: str | None) -> Array:
    """``x``, constrained to lie on the mesh as the names of its axes say."""
    spec = partition(x.shape, names)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)
