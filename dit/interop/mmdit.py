"""Weights of MMDiT: what its formats have in common, whatever the names are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from dit.interop.mapping import Entry, Format
from dit.interop.views import View
from dit.models import condition
from dit.models.layers import Mlp
from dit.models.mmdit import MMDiT
from dit.types import UserError

Foreign = str | View  # an array, or a part of one
Names = Mapping[str, Mapping[str, Any]]  # by stream, then by path within its part of a block
ROTARY = 2  # of queries, keys and values the first two turn
DIFFUSERS: Names = {
    "image": {
        "modulation/linear": "norm1.linear",
        "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "q_norm": "attn.norm_q",
        "k_norm": "attn.norm_k",
        "out": "attn.to_out.0",
        "second/qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "second/q_norm": "attn2.norm_q",
        "second/k_norm": "attn2.norm_k",
        "second/out": "attn2.to_out.0",
        "mlp/in": "ff.net.0.proj",
        "mlp/out": "ff.net.2",
    },
    "text": {
        "modulation/linear": "norm1_context.linear",
        "qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "q_norm": "attn.norm_added_q",
        "k_norm": "attn.norm_added_k",
        "out": "attn.to_add_out",
        "mlp/in": "ff_context.net.0.proj",
        "mlp/out": "ff_context.net.2",
    },
}


@dataclasses.dataclass
class Table:
    """Entries, and the views that they name: grows by one map or norm at a time.

    ``model``: an MMDiT, or another network with ``width``, ``heads``, ``positions`` and ``bias``.
    """

    model: Any
    entries: list[Entry] = dataclasses.field(default_factory=list)
    views: dict[str, View] = dataclasses.field(default_factory=dict)

    def add(
        self, path: str, parts: Iterable[Foreign], what: str, layer: int | None, **more
    ) -> None:
        """One parameter; ``what``: the last word of its foreign names."""
        names = []
        for part in parts:
            if isinstance(part, View):
                view = dataclasses.replace(part, name=f"{part.name}.{what}")
                names.append(f"{view.name}[{view.axis}:{view.start}]")
                self.views[names[-1]] = view
            else:
                names.append(f"{part}.{what}")
        self.entries.append(Entry(tuple(path.split("/")), tuple(names), layer=layer, **more))

    def linear(
        self,
        path: str,
        *parts: Foreign,
        layer: int | None = None,
        inputs: int = 1,
        bias: bool = True,
    ) -> None:
        """A linear map from so many axes, of which ``parts`` are the outputs."""
        self.add(f"{path}/kernel", parts, "weight", layer, kind="linear", inputs=inputs)
        if bias and self.model.bias:
            self.add(f"{path}/bias", parts, "bias", layer)

    def norm(self, path: str, name: str, layer: int | None = None, what: str = "weight") -> None:
        """The scale of an RMSNorm of queries or keys."""
        self.add(f"{path}/scale", [self.turned(name, heads=1)], what, layer)

    def turned(self, name: str, start: int = 0, heads: int | None = None) -> Foreign:
        """Channels of queries or keys, whose rotary pairs are neighbours in the file."""
        heads = self.model.heads if heads is None else heads
        size = self.model.width // self.model.heads
        if "rope" not in self.model.positions:
            return name
        return View(name, start, heads * size, fold=(heads, size // 2, 2), order=(0, 2, 1))

    def qkv(self, path: str, *names: str, layer: int | None = None, bias: bool = True) -> None:
        """Queries, keys and values: three arrays, or the rows of one from its beginning on."""
        d = self.model.width
        if len(names) == 1:
            parts = [self.turned(names[0], i * d) for i in range(ROTARY)]
            if "rope" not in self.model.positions:
                parts = [View(names[0], i * d, d) for i in range(ROTARY)]
            parts.append(View(names[0], 2 * d, d))
        else:
            parts = [self.turned(name) for name in names[:ROTARY]] + list(names[ROTARY:])
        self.linear(path, *parts, layer=layer, bias=bias)

    def swapped(self, path: str, name: str, layer: int | None = None) -> None:
        """A modulation of shift and scale whose file has the scale first."""
        d = self.model.width
        self.linear(path, View(name, d, d), View(name, 0, d), layer=layer)


def doubles(model: MMDiT) -> Iterator[tuple[str, int, int]]:
    """Stage, layer within it, and number among all double blocks."""
    number = 0
    for stage in model.stages:
        for layer in range(0 if stage.merge else stage.depth):
            yield stage.name, layer, number
            number += 1


def double_blocks(
    found: Table, prefix: str, names: Names, scale_first: bool = False, scale: str = "weight"
) -> None:
    """Add all double blocks, ``prefix.i`` in the file, by names within a block.

    ``scale_first``: in the modulation of a text that ends; ``scale``: the last word of a norm's name.
    """
    model = found.model
    for stage, layer, number in doubles(model):
        for stream, own in names.items():
            side = model.block(stage).side(stream)(parent=None)
            path, block = f"{stage}/{stream}", f"{prefix}.{number}"
            linear = functools.partial(found.linear, layer=layer)
            if not model.shared_modulation:
                add = found.swapped if side.ends and scale_first else found.linear
                where = "modulation/linear"
                add(f"{path}/{where}", f"{block}.{own[where]}", layer=layer)
            for part in ("", "second/") if side.dual else ("",):
                qkv = (f"{block}.{name}" for name in own[f"{part}qkv"])
                found.qkv(f"{path}/{part}qkv", *qkv, layer=layer)
                for norm in ("q_norm", "k_norm") if model.qk_norm else ():
                    name = f"{block}.{own[part + norm]}"
                    found.norm(f"{path}/{part}{norm}", name, layer, scale)
                if not side.ends:
                    linear(f"{path}/{part}out", f"{block}.{own[f'{part}out']}", inputs=2)
            for part in () if side.ends else ("mlp/in", "mlp/out"):
                linear(f"{path}/{part}", f"{block}.{own[part]}")


def single_blocks(
    found: Table, prefix: str, names: Mapping[str, Any], scale: str = "weight"
) -> None:
    """Add all single blocks, ``prefix.i`` in the file, by names within a block.

    One array, ``out``, has the columns for attention and then for the MLP. With one name for ``qkv`` and
    none for ``mlp/in`` the rows of one array are queries, keys, values and the MLP's.
    """
    model, d = found.model, found.model.width
    hidden = Mlp.hidden(model.mlp, d, model.mlp_ratio)
    for layer in range(model.single_depth):
        own = {k: v for k, v in names.items() if isinstance(v, str)}
        own = {k: f"{prefix}.{layer}.{v}" for k, v in own.items()}
        qkv = [f"{prefix}.{layer}.{name}" for name in names["qkv"]]
        if not model.shared_modulation:
            found.linear("single/modulation/linear", own["modulation/linear"], layer=layer)
        found.qkv("single/attention/qkv", *qkv, layer=layer)
        for norm in ("q_norm", "k_norm") if model.qk_norm else ():
            found.norm(f"single/attention/{norm}", own[norm], layer, scale)
        rest = own.get("mlp/in", View(qkv[0], 3 * d))
        found.linear("single/mlp/in", rest, layer=layer)
        for part, start, length, inputs in (("attention", 0, d, 2), ("mlp", d, hidden, 1)):
            columns = View(own["out"], start, length, axis=1)
            kernel = f"single/{part}/out/kernel"
            found.add(kernel, [columns], "weight", layer, kind="linear", inputs=inputs)
        if model.bias:
            found.add("single/attention/out/bias", [own["out"]], "bias", layer)


def patches_channels_first(found: Table, into: str, out: str) -> None:
    """Add the first and the last map, for a file whose patches have channels first (FLUX)."""
    model = found.model

    def order(channels):
        return {"fold": (channels, *model.patch[1:]), "order": (1, 2, 0)}

    columns = View(into, axis=1, **order(model.in_channels))
    found.add("embed/kernel", [columns], "weight", None, kind="linear", inputs=1)
    if model.bias:
        found.add("embed/bias", [into], "bias", None)
    found.linear("final/linear", View(out, **order(model.out_channels)))


def demand(model: MMDiT, what: str, conditions: set[str], **fields: Any) -> None:
    """Raise UserError unless a model has the structure and the ``conditions`` of a family."""
    fields = {"second_time": False, "concat_channels": None, "null": "zero"} | fields
    wrong = {k: v for k, v in fields.items() if getattr(model, k) != v}
    taken = condition.taken(model)
    if model.patch[0] != 1:
        wrong["patch"] = (1, *model.patch[1:])
    if wrong or taken - {"guidance"} != conditions - {"guidance"}:
        told = ", ".join(f"{k}={v!r}" for k, v in wrong.items()) or "these conditions"
        raise UserError(
            f"this format holds {what}, which takes {', '.join(sorted(conditions))}; got an MMDiT that "
            f"takes {', '.join(sorted(taken)) or 'nothing'}: build it with {told}, or with a size"
        )


def format_of(
    check: Callable[[MMDiT], None],
    table: Callable[[MMDiT], Table],
    **more: Any,
) -> Format:
    """The format with these names, for models that ``check`` accepts; ``more``: fields of ``Format``."""

    def entries(model: MMDiT, names: Collection[str] = ()) -> list[Entry]:
        check(model)
        return table(model).entries

    return Format(MMDiT, entries, views=lambda model: table(model).views, **more)
