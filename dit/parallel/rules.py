"""One table from logical axis names to mesh axes, and the shardings that follow from it.

A model names the axes of its parameters (``("layers", "embed", "mlp")``). The table gives the mesh axes
over which each name may be split, in order of preference. An axis named None stacks several matrices
(query, key and value) and is never split. No mesh axis is used twice in one array, and a dimension that
is no multiple of a mesh axis leaves it to the next: 1152 columns do not divide by 256, but the 4608 of
the MLP do. A second table does the same for activations. While it is in force (``in_force``), the model
constrains its activations, so that XLA gathers weights and not activations.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dit.config import suggest
from dit.types import UserError

log = logging.getLogger(__name__)

Axes = tuple[str | None, ...]
Choice = str | tuple[str, ...]  # one mesh axis, or several taken as one
Rules = Mapping[str, tuple[Choice, ...]]

STATE: tuple[Choice, ...] = (
    ("fsdp", "context"),
    "fsdp",
)  # devices that share a sample share its state
RULES: Rules = {
    "layers": (),
    "spatial": (),
    "embed": STATE,
    "embed_out": ("tensor", *STATE),
    "heads": ("tensor", *STATE),
    "head_dim": (),
    "norm": (),
    "mlp": ("tensor", *STATE),
    "condition": (),
    "fixed": (),  # channels of an embedding that does not grow with the width
    "modulation": STATE,
    "patch": STATE,
    "classes": STATE,
    "context": STATE,
    "time": STATE,
    "rank": (),
}

ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "act_batch": ("data", "fsdp"),
    "act_replica": ("data",),  # the samples of all devices that share a copy of the state
    "act_modulation": ("fsdp", "context"),
    "act_length": ("context",),
    "act_embed": (),
    "act_heads": ("tensor",),
    "act_all_heads": ("tensor", "context"),  # where every device sees all tokens: inside attention
}


@contextlib.contextmanager
def in_force(mesh: Mesh) -> Iterator[None]:
    """Inside a jitted function: activations are split over ``mesh`` as ``ACTIVATIONS`` says."""
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        nn.logical_axis_rules(tuple(ACTIVATIONS.items())),
    ):
        yield


def is_axes(x: Any) -> bool:
    """Whether ``x`` is the axis names of one array: a leaf of a tree of logical axes."""
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)


def shardings(abstract: Any, axes: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A NamedSharding for every array of ``abstract``, a tree of arrays or of their shapes.

    ``axes``: the same tree with a tuple of logical axis names (or None) in place of each array.
    Raises UserError for a name that is not in the table, or a tuple whose length is not that of the
    shape.
    """
    left_whole = []

    def one(path, names, array):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = partition(where, tuple(array.shape), names, mesh, rules)
        if names and not any(spec) and any(_wanted(n, rules, mesh) for n in names):
            left_whole.append(f"{where} {tuple(array.shape)}")
        return NamedSharding(mesh, spec)

    tree = jax.tree_util.tree_map_with_path(one, axes, abstract, is_leaf=is_axes)
    if left_whole:
        log.warning(
            "%d arrays do not divide by the mesh and are held whole by every device: %s",
            len(left_whole),
            ", ".join(left_whole[:4]) + (", ..." if len(left_whole) > 4 else ""),
        )
    return tree


def partition(
    where: str, shape: tuple[int, ...], names: Axes, mesh: Mesh, rules: Rules
) -> PartitionSpec:
    """The mesh axis, or None, of every dimension of one array."""
    if len(names) != len(shape):
        raise UserError(
            f"{where} has shape {shape}, but logical axes {names}: give one a dimension"
        )
    for name in names:
        if name is not None and name not in rules:
            raise UserError(f"{where}: unknown logical axis {name!r}: {suggest(name, list(rules))}")
    spec: list[tuple[str, ...] | None] = [None] * len(shape)
    choices = [_wanted(name, rules, mesh) for name in names]
    for rank in range(max(map(len, choices), default=0)):
        for i, wanted in enumerate(choices):
            taken = {axis for axes in spec if axes for axis in axes}
            if spec[i] is None and rank < len(wanted) and not taken & set(wanted[rank]):
                parts = math.prod(mesh.shape[axis] for axis in wanted[rank])
                spec[i] = wanted[rank] if shape[i] % parts == 0 else None
    return PartitionSpec(*(axes[0] if axes and len(axes) == 1 else axes for axes in spec))


def _wanted(name: str | None, rules: Rules, mesh: Mesh) -> list[tuple[str, ...]]:
    """The distinct choices for a logical axis, leaving out mesh axes of size one."""
    choices = [(c,) if isinstance(c, str) else c for c in rules.get(name or "", ())]
    real = [tuple(axis for axis in axes if mesh.shape[axis] > 1) for axes in choices]
    return [axes for axes in dict.fromkeys(real) if axes]
