"""The training state and the sharding of its arrays, which are created sharded and never gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh

from dit.parallel.mesh import replicated
from dit.parallel.rules import RULES, Rules, shardings
from dit.training import ema as averages
from dit.training import meter as meters
from dit.training.ema import Ema
from dit.training.meter import Meter
from dit.training.optimizer import Optimizer
from dit.types import Key, Params

EMPTY: Mapping[str, Array] = MappingProxyType({})


@struct.dataclass
class TrainState:
    """Everything that a step changes. ``step``: how many batches have been used or skipped.

    The leaves are arrays or, in a description of the state, shapes or shardings.
    """

    step: Any  # int32
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    meter: Meter


def creator(
    init_params: Callable[[Key], Params],
    optimizer: Optimizer,
    ema: Ema,
    metrics: Iterable[str],
    bins: int = 10,
) -> Callable[..., TrainState]:
    """``create(key, given={}) -> TrainState`` before the first step; works under ``eval_shape``.

    ``given``: parameters by name (``blocks/mlp/kernel``) that replace random ones.
    """

    def create(key: Key, given: Mapping[str, Array] = EMPTY) -> TrainState:
        params = laid_over(init_params(key), given)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.transform.init(params),
            ema=averages.init(ema, params),
            meter=meters.init(metrics, bins),
        )

    return create


def laid_over(params: Params, given: Mapping[str, Array]) -> Params:
    """``params``, in which those of ``given`` replace the ones with their names."""
    if not given:
        return params
    return unflatten_dict({**flatten_dict(params, sep="/"), **given}, sep="/")


def state_shardings(
    abstract: TrainState, axes: Any, mesh: Mesh, rules: Rules = RULES
) -> TrainState:
    """A NamedSharding for every array of the state.

    Parameters follow the table ``rules``. Averages and the optimizer's moments are sharded like the
    parameter that they belong to. Counters and sums are replicated.
    """
    params = shardings(abstract.params, axes, mesh, rules)
    whole = replicated(mesh)
    return TrainState(
        step=whole,
        params=params,
        opt_state=_like(abstract.opt_state, abstract.params, params, whole),
        ema={name: params for name in abstract.ema},
        meter=jax.tree.map(lambda _: whole, abstract.meter),
    )


def _like(tree: Any, params: Params, shardings: Any, default: Any) -> Any:
    """For each array of ``tree``, the sharding of the parameter whose path its own path ends with.

    The state of an optimizer contains trees like the parameters', complete or in part. The end of the
    path and the shape show which parameter an array belongs to.
    """
    known = {}
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, (array, sharding) in zip(paths, pairs, strict=True):
        known[path] = (array.shape, sharding)

    def one(path, array):
        for start in range(len(path)):
            shape, sharding = known.get(tuple(path[start:]), (None, None))
            if shape == array.shape:
                return sharding
        return default

    return jax.tree_util.tree_map_with_path(one, tree)
