"""LoRAs in the layout of PEFT and diffusers: ``PART.MODULE.lora_A.weight`` and ``lora_B``.

PART is ``transformer`` or ``unet``, or ``diffusion_model`` under the authors' own names, as a format of
the network says. Under kohya's names a pair is ``lora_unet_MODULE.lora_down.weight`` and ``lora_up``,
where MODULE has ``_`` for each of its dots.

There A is ``(rank, inputs)`` and B ``(outputs, rank)``, of a convolution with its window in A, and the
names of the modules are those of a format of the whole network. The factor is ``alpha / rank``: alpha
stands in ``.alpha`` beside a pair (kohya), in diffusers' metadata of the file, or else is the rank.

A format may have in one map what are several here, or a stack (query, key and value, shift and scale):
each has the rows of the map's outputs, or the columns of its inputs, that are its own. On the way in,
rows take their part of B and the whole of A, columns the reverse. On the way out, rows with one A in
common (columns with one B) stay a pair of their rank; others become one with B (or A) a stack of
blocks, of the sum of their ranks. Either way ``B A`` is the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dit.interop.mapping import Entry, State
from dit.interop.views import View
from dit.types import UserError

STEM = "pytorch_lora_weights"
ORIGINAL = "diffusion_model"  # the part of files whose readers take no metadata
PREFIXES = (
    "transformer.",
    "unet.",
    f"{ORIGINAL}.",
    "base_model.model.",
    "",
)  # after a format's own
A, B, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
KOHYA = "lora_unet_"
ALSO = {".lora_down.weight": A, ".lora_up.weight": B}  # of kohya, and of some under other names
TEXT = ("lora_te", "text_encoder")  # of a file's names, where it adapts text encoders too
METADATA = "lora_adapter_metadata"  # diffusers' key in a file's header
Size = tuple[int, int, int]  # inputs, stack and outputs of a kernel
Maps = tuple[np.ndarray, np.ndarray]  # one pair there: (rank, inputs) and (outputs, rank)


class Names(NamedTuple):
    """A model's names in a format: ``entries`` and ``views`` of its tensors, which have ``shapes``.

    ``sizes``: of all kernels here, by module. ``part``: what a pipeline calls the network.
    """

    entries: list[Entry]
    views: Mapping[str, View]
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, Size]
    part: str = "transformer"

    def module(self, name: str) -> str:
        """The map there that an entry calls so, or calls a part of so."""
        view = self.views.get(name)
        return (name if view is None else view.name).removesuffix(".weight")


class Read(NamedTuple):
    """A LoRA that was read. ``targets``: the names of its kernels here; all have the largest ``rank``.

    ``pairs``, by name: ``MODULE/lora_a``, (layers, inputs, stack, rank), and ``MODULE/lora_b``,
    (layers, stack, rank, outputs). ``beside``: names in the file that are of text encoders.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    pairs: dict[str, np.ndarray]
    beside: tuple[str, ...]


def is_lora(state: Mapping[str, Any]) -> bool:
    """Whether these are names of a LoRA."""
    return any(name.endswith((A, *ALSO)) for name in state)


def kernels(entries: list[Entry]) -> dict[str, list[Entry]]:
    """The entries of every kernel, by the name of its module here."""
    table: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.path[-1] == "kernel":
            table.setdefault("/".join(entry.path[:-1]), []).append(entry)
    return table


# --- out -----------------------------------------------------------------------------------------


def to_state(pairs: Mapping[str, Any], names: Names) -> State:
    """The tensors of ``pairs``, by name as in ``Read``, where they are not zero."""
    parts: dict[str, list[tuple[int, Maps]]] = {}
    last: dict[str, tuple[Entry, View | None]] = {}
    for module, group in kernels(names.entries).items():
        own = [pairs.get(f"{module}/lora_{x}") for x in "ab"]
        for entry in group:
            a, b = own if entry.layer is None or own[0] is None else (x[entry.layer] for x in own)
            for name, maps in _parts(entry, a, b, names.sizes[module]):
                there, view = names.module(name), names.views.get(name)
                last[there] = entry, view
                start = 0 if view is None else view.start
                x, y = _seen(view, _turned(entry, *maps), lambda v, x: v.write(x))
                x = x.reshape(len(x), math.prod(x.shape[1:]))
                parts.setdefault(there, []).append((start, (x, y)))
    found = {}
    for there, maps in parts.items():
        entry, view = last[there]
        join = _columns if view is not None and view.axis else _rows
        x, y = join([part for _, part in sorted(maps, key=lambda pair: pair[0])])
        if len(x):
            full = f"{names.part}.{there}"
            if entry.kind == "conv":
                x = x.reshape(len(x), -1, *entry.window)
                y = y.reshape(*y.shape, *(1 for _ in entry.window))
            found |= {full + A: np.ascontiguousarray(x), full + B: np.ascontiguousarray(y)}
    return found


def scaled(state: State, scale: float) -> State:
    """The same with the factor in B, for readers that look for it nowhere else."""
    factor = np.float32(scale)
    return {n: x * factor if n.endswith(B) else x for n, x in state.items()}


def kohya(state: State, scale: float) -> State:
    """The same under kohya's names, with an alpha beside every pair."""
    found: State = {}
    for name in (n for n in state if n.endswith(A)):
        module, a = name.removesuffix(A), state[name]
        full = KOHYA + module.partition(".")[2].replace(".", "_")
        for there, own in ALSO.items():
            found[full + there] = state[module + own]
        found[full + ALPHA] = np.float32(scale * len(a))
    return found


def metadata(
    rank: int, alpha: float, state: Mapping[str, np.ndarray], part: str = "transformer"
) -> dict[str, str]:
    """What diffusers keeps in the header: the settings of PEFT, of which it takes alpha."""
    modules = [n.removeprefix(f"{part}.").removesuffix(A) for n in state if n.endswith(A)]
    ranks = {m: state[f"{part}.{m}{A}"].shape[0] for m in modules}
    other = {m: r for m, r in ranks.items() if r != rank}
    settings = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": other,
        "alpha_pattern": {m: alpha * r / rank for m, r in other.items()},
        "target_modules": modules,
    }
    return {METADATA: json.dumps({f"{part}.{k}": v for k, v in settings.items()})}


def _parts(entry: Entry, a: Any, b: Any, size: Size) -> Iterator[tuple[str, Maps]]:
    """The pairs of one layer under the names there; of rank zero without ``a`` and ``b``."""
    inputs, stack, outputs = size
    count = 1 if entry.copies else len(entry.names)
    if a is None:
        none = np.zeros((0, inputs)), np.zeros((stack * outputs // count, 0))
        yield from ((name, none) for name in entry.names)
        return
    _check_count(entry, count, stack)
    rank = np.shape(a)[-1]
    x = np.asarray(a).reshape(inputs, stack, rank).transpose(1, 2, 0)
    y = np.asarray(b).reshape(stack, rank, outputs).transpose(0, 2, 1)
    keep = [u.any(1) | v.any(0) for u, v in zip(x, y, strict=True)]
    pairs = [(u[k], v[:, k]) for u, v, k in zip(x, y, keep, strict=True)]
    if count < stack:
        pairs = [_rows(pairs)]
    for i, name in enumerate(entry.names):
        yield name, pairs[0 if entry.copies else i]


def _rows(pairs: Sequence[Maps]) -> Maps:
    """One pair with the outputs of all in turn, of the same inputs: each distinct A is there once."""
    distinct: list[np.ndarray] = []
    which = []
    for x, _ in pairs:
        same = (i for i, other in enumerate(distinct) if np.array_equal(other, x))
        which.append(next(same, len(distinct)))
        distinct += [x] if which[-1] == len(distinct) else []
    ends = np.cumsum([0, *(len(x) for x in distinct)])
    rows = [np.zeros((len(y), ends[-1]), y.dtype) for _, y in pairs]
    for row, (_, y), i in zip(rows, pairs, which, strict=True):
        row[:, ends[i] : ends[i + 1]] = y
    return np.concatenate(distinct), np.concatenate(rows)


def _columns(pairs: Sequence[Maps]) -> Maps:
    """One pair with the inputs of all in turn, of the same outputs: each distinct B is there once."""
    y, x = _rows([(y.T, x.T) for x, y in pairs])
    return x.T, y.T


def _seen(view: View | None, maps: Maps, how: Callable[[View, np.ndarray], np.ndarray]) -> Maps:
    """A pair of a map, through a view of the map that ``how`` reads or writes."""
    x, y = maps
    if view is None:
        return maps
    return (how(view, x), y) if view.axis else (x, how(view, y))


def _turned(entry: Entry, x: np.ndarray, y: np.ndarray) -> Maps:
    """A pair, of a convolution with A as it is there: channels before the window."""
    if entry.kind != "conv":
        return x, y
    channels = x.shape[1] // math.prod(entry.window)
    return np.moveaxis(x.reshape(len(x), *entry.window, channels), -1, 1), y


# --- in ------------------------------------------------------------------------------------------


def read(state: Mapping[str, Any], header: Mapping[str, str], names: Names) -> Read:
    """The LoRA in a state and the metadata of its file; what it has no pair for is zero.

    Raises UserError, by name, for what is of no kernel, has no partner, or does not fit.
    """
    beside = tuple(n for n in state if n.startswith(TEXT))
    table = kernels(names.entries)
    maps = {names.module(n) for group in table.values() for e in group for n in e.names}
    own, odd = _named({n: x for n, x in state.items() if n not in beside}, maps, names.part)
    if odd:
        raise UserError(
            f"the LoRA has {len(odd)} tensors of no linear map of this network in this format, such as "
            f"{odd[0]!r}: is it of another model, or layout?"
        )
    modules = {m for m in maps if any(m + end in own for end in (A, B, ALPHA))}
    alone = sorted(m for m in modules if m + A not in own or m + B not in own)
    if alone:
        raise UserError(f"the LoRA lacks lora_A or lora_B of {alone[0]!r}; expected both")
    if not modules:
        raise UserError("the LoRA adapts text encoders alone, and nothing of this network")
    for module in sorted(modules):
        _check_shapes(module, own[module + A], own[module + B], names.shapes[f"{module}.weight"])
    told = _metadata(header, names.part)
    scales = {m: _alpha(m, own, told) / len(own[m + A]) for m in sorted(modules)}
    rank, first = max(len(own[m + A]) for m in modules), next(iter(scales.values()))
    same = all(math.isclose(scale, first) for scale in scales.values())
    pairs: dict[str, np.ndarray] = {}
    for module, group in table.items():
        if not modules.isdisjoint(names.module(n) for e in group for n in e.names):
            extra = {} if same else scales  # B then takes each map's own
            each = [_ours(entry, own, extra, names, names.sizes[module], rank) for entry in group]
            for name, parts in zip(("lora_a", "lora_b"), zip(*each, strict=True), strict=True):
                pairs[f"{module}/{name}"] = parts[0] if group[0].layer is None else np.stack(parts)
    targets = sorted({f"{name.rpartition('/')[0]}/kernel" for name in pairs})
    return Read(rank, rank * (first if same else 1.0), tuple(targets), pairs, beside)


def _named(state: Mapping[str, Any], maps: set[str], part: str) -> tuple[State, list[str]]:
    """The tensors by their module in ``maps`` and A, B or ALPHA; those of none, by their full name."""
    flat = {m.replace(".", "_"): m for m in maps}
    prefixes = (f"{part}.", *PREFIXES)
    ends = (A, *ALSO)
    found = (p for p in prefixes if any(n.startswith(p) and n.endswith(ends) for n in state))
    prefix = next(found, "")
    own, odd = {}, []
    for name, x in state.items():
        end = next((e for e in (A, B, ALPHA, *ALSO) if name.endswith(e)), None)
        module = name.removesuffix(end or "").removeprefix(prefix)
        if module.startswith(KOHYA):
            module = flat.get(module.removeprefix(KOHYA), module)
        if end is None or module not in maps:
            odd.append(name)
        else:
            own[module + ALSO.get(end, end)] = np.asarray(x, np.float32)
    return own, sorted(odd)


def _metadata(header: Mapping[str, str], part: str) -> dict[str, Any]:
    """PEFT's settings in the metadata of a file, without the prefix that diffusers gives them."""
    try:
        found = json.loads(header.get(METADATA, "{}"))
        found = {k.removeprefix(f"{part}."): v for k, v in found.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"the LoRA's metadata cannot be read: {error}") from error
    for key in ("use_dora", "use_rslora"):
        if found.get(key):
            raise UserError(f"the LoRA's metadata say {key}; expected a plain LoRA")
    return found


def _alpha(module: str, own: State, told: Mapping[str, Any]) -> float:
    """Alpha of one map: beside it, or in the metadata, or its rank."""
    if module + ALPHA in own:
        return own[module + ALPHA].item()
    value = (told.get("alpha_pattern") or {}).get(module, told.get("lora_alpha"))
    if value is None:
        return float(len(own[module + A]))
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"the LoRA's metadata say lora_alpha={value!r}; expected a positive number")
    return float(value)


def _ours(
    entry: Entry, own: State, scales: Mapping[str, float], names: Names, size: Size, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """A (inputs, stack, rank) and B (stack, rank, outputs) of one layer."""
    inputs, stack, outputs = size
    count = 1 if entry.copies else len(entry.names)
    _check_count(entry, count, stack)
    x = np.zeros((count, inputs, rank), np.float32)
    y = np.zeros((count, rank, stack * outputs // count), np.float32)
    for i, name in enumerate(entry.names[:count]):
        module = names.module(name)
        if module + A not in own:
            continue
        a, b = own[module + A], own[module + B]
        maps = a, b.reshape(len(b), -1)
        a, b = _seen(names.views.get(name), maps, lambda v, x: v.read(x))
        a = np.moveaxis(a, 1, -1).reshape(len(a), -1)
        x[i, :, : len(a)], y[i, : len(a)] = a.T, b.T * scales.get(module, 1.0)
    if count < stack:  # one map there
        x = np.repeat(x, stack, 0)
        y = y.reshape(rank, stack, outputs).transpose(1, 0, 2)
    return x.transpose(1, 0, 2), y


def _check_shapes(module: str, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> None:
    inputs = math.prod(shape[1:])
    if a.size != len(a) * inputs or len(b) != shape[0] or b.size != len(a) * len(b):
        raise UserError(
            f"the LoRA of {module!r} has shapes {a.shape} and {b.shape}; the map there has {inputs} "
            f"inputs and {shape[0]} outputs"
        )


def _check_count(entry: Entry, count: int, stack: int) -> None:
    if count not in (1, stack):
        raise UserError(
            f"this format has {'/'.join(entry.path)} in {count} maps, and here it stacks {stack}: a "
            "LoRA of it cannot be told in both; merge it, or leave it out of lora.targets"
        )
