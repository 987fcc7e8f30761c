"""The training state and the sharding of its arrays, which are created sharded and never gathered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh

from dit import rng
from dit.parallel.mesh import replicated
from dit.parallel.rules import RULES, Rules, shardings
from dit.training import ema as averages
from dit.training import meter as meters
from dit.training.ema import Ema
from dit.training.meter import Meter
from dit.training.optimizer import Optimizer
from dit.types import Key, Params

EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Companion:
    """A network that is trained beside the model, from step ``start`` on, in the same step.

    ``init(key)``: its parameters; ``axes``: the names of their axes. ``loss_fn(own, batch, key, params=,
    networks=, step=)``: its loss and metrics, as a function of its own parameters.
    """

    init: Callable[[Key], Params]
    axes: Any
    optimizer: Optimizer
    loss_fn: Callable[..., Any]
    start: int = 0


@struct.dataclass
class Trained:
    """What a step changes of a companion."""

    params: Params
    opt_state: Any


@struct.dataclass
class TrainState:
    """Everything that a step changes. ``step``: how many batches have been used or skipped.

    ``networks``: the companions, by name; most objectives have none.

    The leaves are arrays or, in a description of the state, shapes or shardings.
    """

    step: Any  # int32
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    meter: Meter
    networks: Any = struct.field(default_factory=dict)  # Trained by name; Orbax has leaves for {}


def creator(
    init_params: Callable[[Key], Params],
    optimizer: Optimizer,
    ema: Ema,
    metrics: Iterable[str],
    bins: int = 10,
    companions: Mapping[str, Companion] = EMPTY,
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
            networks={
                name: begin(each, rng.stream(key, name)) for name, each in companions.items()
            },
        )

    def begin(companion: Companion, key: Key) -> Trained:
        params = companion.init(key)
        return Trained(params, companion.optimizer.transform.init(params))

    return create


def laid_over(params: Params, given: Mapping[str, Array]) -> Params:
    """``params``, in which those of ``given`` replace the ones with their names."""
    if not given:
        return params
    return unflatten_dict({**flatten_dict(params, sep="/"), **given}, sep="/")


def state_shardings(
    abstract: TrainState,
    axes: Any,
    mesh: Mesh,
    rules: Rules = RULES,
    companions: Mapping[str, Companion] = EMPTY,
) -> TrainState:
    """A NamedSharding for every array of the state.

    Parameters follow the table ``rules``. Averages and the optimizer's moments are sharded like the
    parameter that they belong to. Counters and sums are replicated.
    """
    whole = replicated(mesh)

    def trained(abstract: TrainState | Trained, axes: Any) -> Trained:
        params = shardings(abstract.params, axes, mesh, rules)
        return Trained(params, _like(abstract.opt_state, abstract.params, params, whole))

    main = trained(abstract, axes)
    return TrainState(
        step=whole,
        params=main.params,
        opt_state=main.opt_state,
        ema={name: main.params for name in abstract.ema},
        meter=jax.tree.map(lambda _: whole, abstract.meter),
        networks={n: trained(each, companions[n].axes) for n, each in abstract.networks.items()},
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
