"""Weights of Wan and LTX-Video: what their formats have in common, whatever the names are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dit.interop.mapping import Entry, Format
from dit.interop.mmdit import Table
from dit.interop.views import View
from dit.models.condition import taken
from dit.models.positions import default_axes
from dit.models.wan import Wan
from dit.types import UserError

Names = Mapping[str, Any]  # by path here
ANY = {"null": "zero", "qk_norm": True, "rope_theta": 10000.0}
TAKES = ({"context"}, {"context", "concat"}, {"context", "concat", "image_context"})


def wan(model: Wan) -> None:
    """Raise UserError for another structure than those of Wan."""
    fields = {"norm": "layer", "cross_norm": True, "rope": "axes", "qk_norm_eps": model.norm_eps}
    fields["rope_axes"] = default_axes(model.width // model.heads)
    what = "a Wan that takes context, with concat or without, and with both perhaps image_context"
    demand(model, what, fields, TAKES)


def demand(
    model: Wan, what: str, fields: Mapping[str, Any], takes: Collection[set[str]] = ({"context"},)
) -> None:
    """Raise UserError unless a network has these ``fields`` and ``takes`` one set of conditions."""
    fields = {**ANY, "out_channels": model.in_channels, **fields}
    wrong = {k: v for k, v in fields.items() if getattr(model, k) != v}
    if wrong or taken(model) not in takes:
        told = ", ".join(f"{k}={v!r}" for k, v in wrong.items()) or "these conditions"
        raise UserError(
            f"this format holds {what}; got one that takes "
            f"{', '.join(sorted(taken(model))) or 'nothing'}: build it with {told}, or with a size"
        )


def format_of(
    names: Names,
    block: Names,
    check: Callable[[Wan], None] = wan,
    matrices: bool = False,
    **more: Any,
) -> Format:
    """The format with these names, of the network and within a block, for models that pass ``check``.

    ``matrices``: the map from patches is one there, not a convolution, and so are the tables of the
    modulation, which else have a first axis of size one; ``more``: fields of ``Format``.
    """

    def entries(model: Wan, _: Collection[str] = ()) -> list[Entry]:
        check(model)
        return table(model, names, block, matrices).entries

    return Format(
        Wan, entries, views=lambda model: table(model, names, block, matrices).views, **more
    )


def table(model: Wan, names: Names, block: Names, matrices: bool) -> Table:
    """The table of names."""
    found = Table(model)
    embed, conv = names["embed"], {"kind": "linear" if matrices else "conv", "window": model.patch}
    tables = "rows" if matrices else "same"
    if model.concat_channels is None:
        found.add("embed/kernel", [embed], "weight", None, **conv)
    else:  # one convolution of the noisy channels and then of the known ones
        channels = model.in_channels
        found.add("embed/kernel", [View(embed, 0, channels, axis=1)], "weight", None, **conv)
        found.add("concat/kernel", [View(embed, channels, axis=1)], "weight", None, **conv)
    found.add("embed/bias", [embed], "bias", None)
    for path in ("time/in", "time/out", "modulation/linear", "context/linear", "context_out"):
        found.linear(path, names[path])
    same(found, "final/table/rows", names["final/table"], kind=tables)
    found.linear("final/linear", names["final/linear"])
    if model.image_context is not None:
        for path in ("image/norm_in", "image/norm_out"):
            norm(found, path, names[path])
        for path in ("image/in", "image/out"):
            found.linear(path, names[path])
        if model.image_positions:
            same(found, "image/positions", names["image/positions"])
    for layer in range(model.depth):
        own = {k: prefixed(names["blocks"], layer, v) for k, v in block.items()}
        same(found, "blocks/table/rows", own["table"], layer, tables)
        blocks(found, layer, own)
    return found


def blocks(found: Table, layer: int, names: Names) -> None:
    """Add one block, but for its table."""
    model, linear = found.model, functools.partial(found.linear, layer=layer)
    found.qkv("blocks/attention/qkv", *names["attention/qkv"], layer=layer)
    for part in ("q_norm", "k_norm"):
        scale = found.turned(names[f"attention/{part}"], heads=model.heads)
        found.add(f"blocks/attention/{part}/scale", [scale], "weight", layer)
        plain = names[f"cross/{part}"]
        found.add(f"blocks/cross/{part}/scale", [plain], "weight", layer)
    linear("blocks/attention/out", names["attention/out"], inputs=2)
    if model.cross_norm:
        norm(found, "blocks/norm_cross", names["norm_cross"], layer)
    linear("blocks/cross/q", names["cross/q"])
    linear("blocks/cross/kv", *names["cross/kv"])
    linear("blocks/cross/out", names["cross/out"], inputs=2)
    if model.image_context is not None:
        linear("blocks/cross/kv_beside", *names["cross/kv_beside"])
        scale = names["cross/k_norm_beside"]
        found.add("blocks/cross/k_norm_beside/scale", [scale], "weight", layer)
    for part in ("mlp/in", "mlp/out"):
        linear(f"blocks/{part}", names[part])


def prefixed(prefix: str, layer: int, name: str | tuple[str, ...]) -> Any:
    """Names within a block as those of a layer."""
    if isinstance(name, tuple):
        return tuple(f"{prefix}.{layer}.{part}" for part in name)
    return f"{prefix}.{layer}.{name}"


def norm(found: Table, path: str, name: str, layer: int | None = None) -> None:
    """Add the scale and the bias of a LayerNorm."""
    found.add(f"{path}/scale", [name], "weight", layer)
    found.add(f"{path}/bias", [name], "bias", layer)


def same(found: Table, path: str, name: str, layer: int | None = None, kind: str = "same") -> None:
    """Add an array whose name has no last word for its kind."""
    found.entries.append(Entry(tuple(path.split("/")), (name,), kind, layer))
