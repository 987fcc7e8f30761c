"""Weights of Wan: what its formats have in common, whatever the names are."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

from dit.interop.mapping import Entry, Format
from dit.interop.mmdit import Table
from dit.interop.views import View
from dit.models.condition import taken
from dit.models.positions import default_axes
from dit.models.wan import Wan
from dit.types import UserError

Names = Mapping[str, Any]  # by path here
TAKES = ({"context"}, {"context", "concat"}, {"context", "concat", "image_context"})


def check(model: Wan) -> None:
    """Raise UserError for another structure than the published ones."""
    fields = {"null": "zero", "qk_norm": True, "out_channels": model.in_channels}
    fields |= {"rope_axes": default_axes(model.width // model.heads), "rope_theta": 10000.0}
    wrong = {k: v for k, v in fields.items() if getattr(model, k) != v}
    if wrong or taken(model) not in TAKES:
        told = ", ".join(f"{k}={v!r}" for k, v in wrong.items()) or "these conditions"
        raise UserError(
            "this format holds a Wan that takes context, with concat or without, and with both perhaps "
            f"image_context; got one that takes {', '.join(sorted(taken(model))) or 'nothing'}: build "
            f"it with {told}, or with a size"
        )


def format_of(names: Names, block: Names, **more: Any) -> Format:
    """The format with these names, of the network and within a block; ``more``: fields of ``Format``."""

    def entries(model: Wan, _: Collection[str] = ()) -> list[Entry]:
        check(model)
        return table(model, names, block).entries

    return Format(Wan, entries, views=lambda model: table(model, names, block).views, **more)


def table(model: Wan, names: Names, block: Names) -> Table:
    """The table of names."""
    found = Table(model)
    embed, conv = names["embed"], {"kind": "conv", "window": model.patch}
    if model.concat_channels is None:
        found.add("embed/kernel", [embed], "weight", None, **conv)
    else:  # one convolution of the noisy channels and then of the known ones
        channels = model.in_channels
        found.add("embed/kernel", [View(embed, 0, channels, axis=1)], "weight", None, **conv)
        found.add("concat/kernel", [View(embed, channels, axis=1)], "weight", None, **conv)
    found.add("embed/bias", [embed], "bias", None)
    for path in ("time/in", "time/out", "modulation/linear", "context/linear", "context_out"):
        found.linear(path, names[path])
    same(found, "final/table/rows", names["final/table"])
    found.linear("final/linear", names["final/linear"])
    if model.image_context is not None:
        for path in ("image/norm_in", "image/norm_out"):
            norm(found, path, names[path])
        for path in ("image/in", "image/out"):
            found.linear(path, names[path])
        if model.image_positions:
            same(found, "image/positions", names["image/positions"])
    for layer in range(model.depth):
        blocks(found, layer, {k: prefixed(names["blocks"], layer, v) for k, v in block.items()})
    return found


def blocks(found: Table, layer: int, names: Names) -> None:
    """Add one block."""
    model, linear = found.model, functools.partial(found.linear, layer=layer)
    same(found, "blocks/table/rows", names["table"], layer)
    found.qkv("blocks/attention/qkv", *names["attention/qkv"], layer=layer)
    for part in ("q_norm", "k_norm"):
        scale = found.turned(names[f"attention/{part}"], heads=model.heads)
        found.add(f"blocks/attention/{part}/scale", [scale], "weight", layer)
        plain = names[f"cross/{part}"]
        found.add(f"blocks/cross/{part}/scale", [plain], "weight", layer)
    linear("blocks/attention/out", names["attention/out"], inputs=2)
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


def same(found: Table, path: str, name: str, layer: int | None = None) -> None:
    """Add an array whose name has no last word for its kind."""
    found.entries.append(Entry(tuple(path.split("/")), (name,), layer=layer))
