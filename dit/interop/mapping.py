"""Tables of names between a foreign state dict and a model's parameters, read both ways.

Both ways are lazy: a parameter is read when it is placed, each process reads what its devices hold of
it, and of what is written one parameter has to be there at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dit import models
from dit.interop.described import Latents
from dit.interop.views import View, Views, filled, joined_layout, regions
from dit.models import Network, condition
from dit.models.dit import DiT
from dit.types import Params, UserError

State = dict[str, Any]  # NumPy arrays, or files.Stored, which are read when they are asked for
Path = tuple[str, ...]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter (of one layer) and where it lies in a foreign state.

    ``kind``: ``linear`` (rows are outputs there), ``conv`` (a convolution of patches of ``window``,
    channels first there), ``channels`` (one number each, followed there by axes of size one, as many as
    in ``window``), ``rows`` (a matrix there, of as many columns) or ``same``. Several ``names`` are its
    parts along the outputs, or, if ``copies``, equal copies. ``inputs``: how many axes of a kernel are
    inputs, where no bias tells.
    """

    path: Path
    names: tuple[str, ...]
    kind: str = "same"
    layer: int | None = None
    copies: bool = False
    window: tuple[int, ...] | None = None
    inputs: int | None = None


def _nothing(*_: Any) -> State:
    return {}


@dataclasses.dataclass(frozen=True)
class Format:
    """A layout of the weights of a ``network``: ``to_params`` and ``to_state`` are exact inverses.

    ``table(model, names)``: the entries, or UserError for a model that the layout cannot hold.
    ``names``: those of the file, which tell the generations of a layout apart; none for what is
    written. ``fixed(model, shape)``: tensors that are no parameters there but follow from the model and
    from the shape ``(f, h, w, c)`` of its data: those of a file are checked. ``views(model)``: parts of
    tensors, under the names that the table has for them. ``only(state)``: the part
    of a file of more that is of the network. ``sections(state, settings)``: what the tensors and the
    ``config.json`` beside them (empty without one) say, as sections of a config; ``settings(model,
    shape)``: that file of a model, None for a layout without one. ``latents``: of an autoencoder.
    ``stem``: what files are called; ``part``: what a pipeline calls the network, in which a LoRA's
    names lie; ``diffusion_model`` under the authors' own names.
    """

    network: type[Network]
    table: Callable[[Any, Collection[str]], list[Entry]]
    fixed: Callable[[Any, tuple[int, ...]], State] = _nothing
    views: Callable[[Any], Mapping[str, View]] = _nothing
    only: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    sections: Callable[[State, Mapping[str, Any]], dict[str, Any]] | None = None
    settings: Callable[[Any, tuple[int, ...]], dict[str, Any]] | None = None
    latents: Latents | None = None
    stem: str = "model"
    part: str = "transformer"

    def to_params(
        self,
        state: Mapping[str, Any],
        model: Network,
        shape: tuple[int, ...],
        target: Params | None = None,
    ) -> Params:
        """The parameters that a foreign state holds, or those of them that are in ``target``.

        ``target``: shapes with their shardings; by default all parameters, on the first device. Raises
        UserError for a model the layout cannot hold, and, by name, for what is missing, not used, of
        another shape, or a copy that differs.
        """
        entries, state = self.opened(state, model, shape)
        abstract = models.abstract(model, shape)
        check_shapes(state, entries, abstract)
        target = abstract if target is None else target
        return placed(state, entries, target, jax.tree.map(lambda x: x.sharding, target))

    def opened(
        self, state: Mapping[str, Any], model: Network, shape: tuple[int, ...]
    ) -> tuple[list[Entry], Mapping[str, Any]]:
        """The table of a state and what of it is in the table; UserError as for ``to_params``."""
        self.check(model)
        state = dict(self.only(state))
        entries = self.table(model, state.keys())
        for name, expected in self.fixed(model, shape).items():
            if name not in state:
                raise UserError(f"the weights lack {name!r}: they are of another kind or layout")
            found = np.asarray(state.pop(name))
            near = 1e-4 if found.dtype.itemsize > 2 else 2**-8
            if found.shape != expected.shape or not np.allclose(found, expected, atol=near):
                raise UserError(
                    f"{name!r} of shape {found.shape} is not the table {expected.shape} that follows "
                    f"from the model and data of shape {shape}"
                )
        views = self.views(model)
        shown = Views(state, views) if views else state
        check_names(shown, entries, "depth, patch and classes")
        return entries, shown

    def to_state(self, params: Params, model: Network, shape: tuple[int, ...]) -> State:
        """The foreign state that holds these parameters."""
        self.check(model)
        entries, views = self.table(model, ()), self.views(model)
        layouts = joined_layout(layout(entries, params), views)
        found = filled(layouts, regions(to_state(params, entries).items(), views))
        return self.fixed(model, shape) | found

    def check(self, model: Network) -> None:
        """Raise UserError for another network."""
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


# --- in ------------------------------------------------------------------------------------------


def placed(
    state: Mapping[str, Any], entries: list[Entry], abstract: Params, shardings: Any | None
) -> Params:
    """Read the parameters in ``abstract``, one at a time: its shapes and types.

    ``shardings``: a tree like it, in which None is the first device, as it is for all where there is
    no tree. Each process reads the slices that its devices hold, layer by layer. UserError as for
    ``Format.to_params``.
    """
    wanted = flatten_dict(abstract)
    where = {} if shardings is None else flatten_dict(shardings)
    table = by_path(entries)
    absent = [path for path in wanted if path not in table]
    if absent:
        raise UserError(f"this layout of weights has no {'/'.join(absent[0])}, which the model has")
    check_shapes(state, [e for path in wanted for e in table[path]], abstract)
    return unflatten_dict(
        {path: _array(state, table[path], leaf, where.get(path)) for path, leaf in wanted.items()}
    )


def by_path(entries: list[Entry]) -> dict[Path, list[Entry]]:
    """The entries of each parameter: one, or one a layer."""
    table: dict[Path, list[Entry]] = {}
    for entry in entries:
        table.setdefault(entry.path, []).append(entry)
    return table


def check_names(state: Collection[str], entries: list[Entry], check: str) -> None:
    """Raise UserError, which says what to ``check``, unless a state's names are those of the table."""
    known = {name for entry in entries for name in entry.names}
    missing, unused = sorted(known - set(state)), sorted(set(state) - known)
    if missing or unused:
        raise UserError(
            f"the weights do not fit the model: missing {missing[:5]} ({len(missing)} in all), not "
            f"used {unused[:5]} ({len(unused)} in all); check {check}"
        )


def check_shapes(state: Mapping[str, Any], entries: list[Entry], abstract: Params) -> None:
    """Raise UserError, by name, unless all tensors of a state have the shapes that they must."""
    wanted = flatten_dict(abstract)
    for entry in entries:
        first, *rest = (tuple(state[name].shape) for name in entry.names)
        odd = [name for name, x in zip(entry.names[1:], rest, strict=True) if x != first]
        if odd:
            raise UserError(
                f"{odd[0]} is not shaped like {entry.names[0]}: it does not fit the model"
            )
        leaf = wanted[entry.path].shape
        count = 1 if entry.copies else len(entry.names)
        if entry.layer is not None and entry.layer >= leaf[0]:
            raise UserError(f"{entry.names[0]} is of layer {entry.layer}; the model has {leaf[0]}")
        if _outputs_at(entry, first, count, _of_layer(entry, leaf)) is None:
            raise UserError(
                f"{entry.names[0]} has shape {first}; it does not fit the model, whose "
                f"{'/'.join(entry.path)} has {leaf}"
            )


def _of_layer(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if entry.layer is None else shape[1:]


def _outputs_at(
    entry: Entry, there: tuple[int, ...], count: int, shape: tuple[int, ...]
) -> int | None:
    """The axis of a parameter of ``shape`` at which its outputs begin; None if it is another's."""
    rank = {"linear": 2, "conv": 2 + len(entry.window or (1, 1))}.get(entry.kind)
    if rank is None and count == 1 and _long(there) == _long(shape):
        return 0
    if len(there) != (rank or 1):
        return None
    inputs, outputs = math.prod(there[1:]), there[0] * count
    for axis in range(len(shape) + 1):
        fits = (math.prod(shape[:axis]), math.prod(shape[axis:])) == (inputs, outputs)
        if fits and (count == 1 or (axis < len(shape) and shape[axis] % count == 0)):
            return axis
    return None


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of size one."""
    return tuple(n for n in shape if n != 1)


def _array(
    state: Mapping[str, Any], entries: list[Entry], leaf: Any, sharding: Any | None
) -> jax.Array:
    """A parameter on its devices, of which the host holds one device's part at a time."""
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    parts: dict[Any, jax.Array] = {}
    host = last = None
    spots = sharding.addressable_devices_indices_map(leaf.shape)
    whole = {device: _whole(index, leaf.shape) for device, index in spots.items()}
    for device, index in sorted(whole.items(), key=lambda item: str(item[1])):
        if index != last:  # copies of one part follow each other
            host = None
            host, last = _part(state, entries, leaf, index), index
        parts[device] = jax.device_put(host, device).block_until_ready()
    arrays = [parts[device] for device in spots]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def parts(state: Mapping[str, Any], entries: list[Entry], leaf: Any) -> Iterator[np.ndarray]:
    """A parameter of the shape and type of ``leaf``, a layer after the other where it has layers."""
    ends = [slice(0, n) for n in leaf.shape]
    step = 1 if entries[0].layer is not None else leaf.shape[0]
    for first in range(0, leaf.shape[0], step):
        yield _part(state, entries, leaf, (slice(first, first + step), *ends[1:]))


def _whole(index: Any, shape: tuple[int, ...]) -> Index:
    """An index with the beginning and the end of each axis."""
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))


def _part(state: Mapping[str, Any], entries: list[Entry], leaf: Any, index: Index) -> np.ndarray:
    """What a device holds of a parameter."""
    out = np.empty([s.stop - s.start for s in index], leaf.dtype)
    for entry in entries:
        shape = _of_layer(entry, leaf.shape)
        if entry.layer is None:
            out[...] = _value(state, entry, shape, index)
        elif index[0].start <= entry.layer < index[0].stop:
            out[entry.layer - index[0].start] = _value(state, entry, shape, index[1:])
    return out


def _value(
    state: Mapping[str, Any], entry: Entry, shape: tuple[int, ...], index: Index
) -> np.ndarray:
    """A slice of the parameter of an entry: a view of the state, where it has one part."""
    parts = [np.asarray(state[name]) for name in entry.names[: 1 if entry.copies else None]]
    for name in entry.names[1:] if entry.copies else ():
        if not np.array_equal(parts[0], np.asarray(state[name])):
            raise UserError(f"{entry.names[0]} and its copies differ; this model has only one")
    axis = _outputs_at(entry, parts[0].shape, len(parts), shape)
    turned = {"linear": lambda x: x.T, "conv": lambda x: x.transpose(*range(2, x.ndim), 1, 0)}
    parts = [turned.get(entry.kind, lambda x: x)(part) for part in parts]
    if len(parts) == 1:
        return parts[0].reshape(shape)[index]
    size = shape[axis] // len(parts)
    found = []
    for i, part in enumerate(parts):
        first, last = (
            min(max(n - i * size, 0), size) for n in (index[axis].start, index[axis].stop)
        )
        if first < last:
            part = part.reshape(*shape[:axis], size, *shape[axis + 1 :])
            found.append(part[(*index[:axis], slice(first, last), *index[axis + 1 :])])
    return np.concatenate(found, axis)


# --- out -----------------------------------------------------------------------------------------


def to_state(params: Params, entries: list[Entry]) -> State:
    """Write a state, a parameter after the other."""
    found, table = flatten_dict(params), by_path(entries)
    given = [tensors([found[p]], group, params) for p, group in table.items() if p in found]
    return dict(itertools.chain(*given))


def tensors(
    parts: Iterable[Any], entries: list[Entry], abstract: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one parameter, whose ``entries`` these are, each as soon as its layer is there.

    ``parts``: it whole or, if it is stacked, some layers after the other; ``abstract``: the shapes of
    all the model's.
    """
    shapes, first = flatten_dict(abstract), 0
    for part in parts:
        part = np.asarray(part)
        for entry in entries:
            layer = None if entry.layer is None else entry.layer - first
            if layer is None or 0 <= layer < len(part):
                written = _written(part if layer is None else part[layer], entry, shapes)
                yield from ((name, np.ascontiguousarray(x)) for name, x in written)
        first += len(part) if part.ndim else 0


def layout(entries: list[Entry], abstract: Params) -> dict[str, Any]:
    """The shapes and types of all tensors that ``tensors`` gives, without any numbers."""
    shapes, found = flatten_dict(abstract), {}
    for entry in entries:
        leaf = shapes[entry.path]
        one = jax.ShapeDtypeStruct(_of_layer(entry, leaf.shape), leaf.dtype)
        parts = jax.eval_shape(lambda x, entry=entry: dict(_written(x, entry, shapes)), one)
        found |= {name: parts[name] for name in entry.names}
    return found


def _written(value: Any, entry: Entry, shapes: Mapping[Path, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors of one entry, of an array of NumPy or JAX."""
    if entry.kind == "linear":
        n_in = entry.inputs or value.ndim - len(_bias(entry, shapes))
        value = value.reshape(math.prod(value.shape[:n_in]), -1).T
    elif entry.kind == "conv":
        outputs = math.prod(value.shape[entry.inputs or value.ndim - 1 :])
        value = value.reshape(*entry.window, -1, outputs)
        value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
    elif entry.kind == "channels":
        value = value.reshape(-1, *entry.window)
    elif entry.kind == "rows":
        value = value.reshape(-1, value.shape[-1])
    elif entry.path[-1] == "bias":
        value = value.reshape(-1)
    size = len(value) // (1 if entry.copies else len(entry.names))
    for i, name in enumerate(entry.names):
        yield name, value if entry.copies else value[i * size : (i + 1) * size]


def _bias(entry: Entry, shapes: Mapping[Path, Any]) -> tuple[int, ...]:
    """The shape of a linear map's output: that of its bias."""
    return _of_layer(entry, shapes[(*entry.path[:-1], "bias")].shape)


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
    taken = condition.taken(model)
    if not plain or options.get("qk_norm") or taken != {"label"}:
        raise UserError(
            "this format holds models of block 'adaln_zero' with sincos positions, a patch of one "
            "frame, no QK-norm and labels as their only condition; got a model with block "
            f"{model.block!r}, positions {model.positions!r}, patch {model.patch} and the conditions "
            f"{sorted(taken)}: build it so"
        )
