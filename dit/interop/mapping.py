"""Tables of names between a foreign state dict and a model's parameters, read both ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dit import models, rng
from dit.models import Network
from dit.models.condition import OPTIONS
from dit.models.dit import DiT
from dit.types import Params, UserError

State = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter (of one layer) and where it lies in a foreign state.

    ``kind``: ``linear`` (rows are outputs there), ``conv`` (a convolution of patches of ``window``,
    channels first there) or ``same``. Several ``names`` are its parts along the outputs, or, if
    ``copies``, equal copies. ``inputs``: how many axes of a kernel are inputs, where no bias tells.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    kind: str = "same"
    layer: int | None = None
    copies: bool = False
    window: tuple[int, int] | None = None
    inputs: int | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """``to_params(state, model, shape)`` and ``to_state(params, model, shape)``: exact inverses.

    ``shape``: ``(f, h, w, c)`` of the data, on which tables of positions depend. Both raise UserError
    for a model the format cannot hold, such as any that is not a ``network``; the first also for names
    missing or not used, wrong shapes and copies that differ.
    """

    network: type[Network]
    read: Callable[[Mapping[str, np.ndarray], Any, tuple[int, ...]], Params]
    write: Callable[[Params, Any, tuple[int, ...]], State]

    def to_params(
        self, state: Mapping[str, np.ndarray], model: Network, shape: tuple[int, ...]
    ) -> Params:
        """The parameters that a foreign state holds."""
        self._check(model)
        return self.read(state, model, shape)

    def to_state(self, params: Params, model: Network, shape: tuple[int, ...]) -> State:
        """The foreign state that holds these parameters."""
        self._check(model)
        return self.write(params, model, shape)

    def _check(self, model: Network) -> None:
        if not isinstance(model, self.network):
            raise UserError(
                f"got a {type(model).__name__} for weights of a {self.network.__name__}; expected a "
                f"config whose model is a {self.network.__name__}, or a format of that network"
            )


def linear(path: str, *names: str, layer: int | None = None, copies: bool = False):
    """The entries of a linear map: its weight and its bias."""
    path = tuple(path.split("/"))
    weight, bias = (tuple(f"{n}.{what}" for n in names) for what in ("weight", "bias"))
    yield Entry((*path, "kernel"), weight, "linear", layer, copies)
    yield Entry((*path, "bias"), bias, "same", layer, copies)


def to_params(
    state: Mapping[str, np.ndarray], entries: list[Entry], model: Network, shape: tuple[int, ...]
) -> Params:
    """Read a state into JAX arrays; UserError unless its names are exactly those of the table."""
    check_names(state, entries, "depth, patch and classes")
    abstract = jax.eval_shape(lambda key: models.init(model, key, shape), rng.root(0))
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract)
    for entry in entries:
        leaf, at = _leaf(params, entry)
        leaf[at] = _value(state, entry, leaf[at].shape)
    return jax.tree.map(jnp.asarray, params)


def placed(
    state: Mapping[str, np.ndarray], entries: list[Entry], abstract: Params, shardings: Any | None
) -> Params:
    """Read a state, one parameter at a time, where every parameter has an entry of its own.

    ``abstract``: shapes and types; ``shardings``: a tree like it, None for the first device. Each
    process reads what its devices hold. UserError as for ``to_params``.
    """
    check_names(state, entries, "its config.json")
    wanted = flatten_dict(abstract)
    where = {} if shardings is None else flatten_dict(shardings)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = {}
    for entry in entries:
        leaf = wanted[entry.path]
        value = _value(state, entry, leaf.shape)

        def part(index, value=value, dtype=leaf.dtype):
            return np.ascontiguousarray(value[index], dtype)

        params[entry.path] = jax.make_array_from_callback(
            leaf.shape, where.get(entry.path, here), part
        )
    return unflatten_dict(params)


def check_names(state: Mapping[str, np.ndarray], entries: list[Entry], check: str) -> None:
    """Raise UserError, which says what to ``check``, unless a state's names are those of the table."""
    known = {name for entry in entries for name in entry.names}
    missing, unused = sorted(known - set(state)), sorted(set(state) - known)
    if missing or unused:
        raise UserError(
            f"the weights do not fit the model: missing {missing[:5]} ({len(missing)} in all), not "
            f"used {unused[:5]} ({len(unused)} in all); check {check}"
        )


def _value(state: Mapping[str, np.ndarray], entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter of an entry: a view of the state, where it has one part."""
    parts = [np.asarray(state[name]) for name in entry.names]
    if entry.copies:
        if any(not np.array_equal(parts[0], part) for part in parts[1:]):
            raise UserError(f"{entry.names[0]} and its copies differ; this model has only one")
        parts = parts[:1]
    odd = [name for name, x in zip(entry.names, parts, strict=False) if x.shape != parts[0].shape]
    if odd:
        raise UserError(f"{odd[0]} is not shaped like {entry.names[0]}: it does not fit the model")
    value = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if entry.kind == "linear":
        value = value.T
    elif entry.kind == "conv":
        value = value.transpose(2, 3, 1, 0)
    if value.size != math.prod(shape):
        raise UserError(f"{entry.names[0]} has shape {parts[0].shape}; it does not fit the model")
    return value.reshape(shape)


def to_state(params: Params, entries: list[Entry]) -> State:
    """Write a state, in the table's order."""
    state = {}
    for entry in entries:
        leaf, at = _leaf(params, entry)
        value = np.asarray(leaf[at])
        if entry.kind == "linear":
            n_in = entry.inputs or value.ndim - len(_outputs(params, entry, at))
            value = value.reshape(int(np.prod(value.shape[:n_in])), -1).T
        elif entry.kind == "conv":
            outputs = math.prod(value.shape[entry.inputs or value.ndim - 1 :])
            value = value.reshape(*entry.window, -1, outputs).transpose(3, 2, 0, 1)
        elif entry.path[-1] == "bias":
            value = value.reshape(-1)
        count = 1 if entry.copies else len(entry.names)
        parts = np.split(value, count) * (len(entry.names) if entry.copies else 1)
        state |= {n: np.array(p) for n, p in zip(entry.names, parts, strict=True)}
    return state


def _leaf(params: Params, entry: Entry):
    leaf = params
    for key in entry.path:
        leaf = leaf[key]
    return leaf, (... if entry.layer is None else entry.layer)


def _outputs(params: Params, entry: Entry, at) -> tuple[int, ...]:
    """The shape of a linear map's output: that of its bias."""
    bias, _ = _leaf(params, dataclasses.replace(entry, path=(*entry.path[:-1], "bias")))
    return np.asarray(bias[at]).shape


def blocks(depth: int, prefix: str, names: Mapping[str, str | tuple[str, ...]]) -> Iterator[Entry]:
    """The entries of every layer's linear maps, from names within a block."""
    for layer in range(depth):
        for path, foreign in names.items():
            foreign = (foreign,) if isinstance(foreign, str) else foreign
            full = [f"{prefix}.{layer}.{name}" for name in foreign]
            yield from linear(f"blocks/{path}", *full, layer=layer)


def check(model: DiT) -> None:
    """Raise UserError unless a DiT has the structure of the original."""
    options = dict(model.block_options)
    plain = model.block == "adaln_zero" and model.positions == "sincos" and model.patch[0] == 1
    taken = {
        name for name, option in OPTIONS.items() if getattr(model, option) not in (None, False)
    }
    if not plain or options.get("qk_norm") or taken != {"label"}:
        raise UserError(
            "this format holds models of block 'adaln_zero' with sincos positions, a patch of one "
            "frame, no QK-norm and labels as their only condition; got a model with block "
            f"{model.block!r}, positions {model.positions!r}, patch {model.patch} and the conditions "
            f"{sorted(taken)}: build it so"
        )
