"""Weights of Stable Diffusion's U-Net: what its layouts have in common, whatever the names are.

Convolutions of 1x1 are matrices here, but for those to and from a transformer where the model says so
(``linear_projection``). Known channels (``Cond.concat``) are the last inputs of the first convolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dit.interop.mapping import Entry, Format
from dit.interop.views import View
from dit.models.condition import taken
from dit.models.unet import UNet
from dit.models.unet_blocks import Layer
from dit.types import UserError

TAKES = ({"context"}, {"context", "concat"}, {"context", "pooled"})
TRANSFORMER = {  # within a block of one: names there, and the axes of a kernel that are inputs
    "attention/qkv": (("attn1.to_q", "attn1.to_k", "attn1.to_v"), 1, False),
    "attention/out": (("attn1.to_out.0",), 2, True),
    "cross/q": (("attn2.to_q",), 1, False),
    "cross/kv": (("attn2.to_k", "attn2.to_v"), 1, False),
    "cross/out": (("attn2.to_out.0",), 2, True),
    "mlp/in": (("ff.net.0.proj",), 1, True),
    "mlp/out": (("ff.net.2",), 1, True),
}
NORMS = {"norm_attention": "norm1", "norm_cross": "norm2", "norm_mlp": "norm3"}


@dataclasses.dataclass(frozen=True)
class Names:
    """What a layout calls the parts.

    ``whole``: by path here, of the parts that are no layers. ``block``: within a residual block.
    ``places(model)``: of each layer, by its name here, where its residual block (or convolution) and
    where its transformer is.
    """

    whole: Mapping[str, str]
    block: Mapping[str, str]
    places: Callable[[UNet], Mapping[str, tuple[str, str]]]


class Table:
    """Entries, and the views that they name."""

    def __init__(self):
        self.entries: list[Entry] = []
        self.views: dict[str, View] = {}

    def add(self, path: str, *names: str, what: str, **more: Any) -> None:
        """One parameter, whose foreign names end in ``what``."""
        full = tuple(f"{name}.{what}" for name in names)
        self.entries.append(Entry(tuple(path.split("/")), full, **more))

    def linear(self, path: str, *names: str, inputs: int = 1, bias: bool = True, **more) -> None:
        """A linear map from so many axes, of which ``names`` are the outputs."""
        kernel = {"kind": "linear", "inputs": inputs}
        self.add(f"{path}/kernel", *names, what="weight", **kernel, **more)
        if bias:
            self.add(f"{path}/bias", *names, what="bias", **more)

    def convolution(self, path: str, name: str, size: int = 3) -> None:
        """A convolution, or a linear map that is one of 1x1 there."""
        self.add(f"{path}/kernel", name, what="weight", kind="conv", window=(size, size))
        self.add(f"{path}/bias", name, what="bias")

    def norm(self, path: str, name: str, **more: Any) -> None:
        """The scale and the bias of a norm."""
        self.add(f"{path}/scale", name, what="weight", **more)
        self.add(f"{path}/bias", name, what="bias", **more)


def check(model: UNet) -> None:
    """Raise UserError for another structure than that of Stable Diffusion's."""
    fields = {"null": "zero", "second_time": False, "guidance_input": False}
    wrong = {k: getattr(model, k) for k, v in fields.items() if getattr(model, k) != v}
    blocks = [layer for layer in model.layers if layer.kind == "block"]
    plain = not any(x.resample or x.temporal or (x.heads and not x.transformer) for x in blocks)
    sized = ("pooled" in taken(model)) == (model.pixel_size is not None)
    fits = model.reads and plain and not model.style.scale_shift and sized
    if wrong or not fits or taken(model) not in TAKES:
        told = ", ".join(f"{k}={v!r}" for k, v in wrong.items()) or "another structure"
        raise UserError(
            "this format holds a U-Net like Stable Diffusion's, with transformers that read a context, "
            "null='zero', scale_shift and resblock_updown False and no attention along time; it takes a "
            "context, and concat or pooled and pixel_size perhaps; got one that takes "
            f"{', '.join(sorted(taken(model))) or 'nothing'}, with {told}: build it with a size, such "
            "as 'SD-1.5'"
        )


def format_of(names: Names, **more: Any) -> Format:
    """The format with these names; ``more``: fields of ``Format``."""

    def entries(model: UNet, _: Collection[str] = ()) -> list[Entry]:
        check(model)
        return table(model, names).entries

    more = {"part": "unet"} | more
    return Format(UNet, entries, views=lambda model: table(model, names).views, **more)


def table(model: UNet, names: Names) -> Table:
    """The table of names."""
    found, whole = Table(), names.whole
    embed(found, model, whole["embed"])
    numbers = ("time", "pooled") if model.pooled_dim is not None else ("time",)
    for path in (f"{number}/{end}" for number in numbers for end in ("in", "out")):
        found.linear(path, whole[path])
    places = names.places(model)
    for layer in model.layers:
        block, transformer = places[layer.name]
        if layer.kind == "conv":
            found.convolution(f"{layer.name}/conv", block)
            continue
        residual(found, layer, {k: f"{block}.{v}" for k, v in names.block.items()})
        if layer.transformer:
            transform(found, layer, transformer, model.style.linear_projection)
    found.norm("norm", whole["norm"])
    found.convolution("final", whole["final"])
    return found


def embed(found: Table, model: UNet, name: str) -> None:
    """Add the first convolution, of the noisy channels and then of the known ones."""
    if model.concat_channels is None:
        found.convolution("embed", name)
        return
    n, weight = model.in_channels, f"{name}.weight"
    for path, view in (
        ("embed", View(weight, 0, n, axis=1)),
        ("concat", View(weight, n, axis=1)),
    ):
        part = f"{weight}[1:{view.start}]"
        found.views[part] = view
        found.entries.append(Entry((path, "kernel"), (part,), "conv", window=(3, 3)))
    found.add("embed/bias", name, what="bias")


def residual(found: Table, layer: Layer, names: Mapping[str, str]) -> None:
    """Add a residual block."""
    path = f"{layer.name}/block"
    for part in ("in", "out"):
        found.norm(f"{path}/norm_{part}", names[f"norm_{part}"])
        found.convolution(f"{path}/conv_{part}", names[f"conv_{part}"])
    found.linear(f"{path}/modulation", names["modulation"])
    if layer.inputs != layer.outputs:
        found.convolution(f"{path}/shortcut", names["shortcut"], 1)


def transform(found: Table, layer: Layer, place: str, matrices: bool) -> None:
    """Add a transformer; ``matrices``: to it and back, or convolutions of 1x1."""
    path = f"{layer.name}/transformer"
    found.norm(f"{path}/norm", f"{place}.norm")
    for part, name in (("in", "proj_in"), ("out", "proj_out")):
        if matrices:
            found.linear(f"{path}/{part}", f"{place}.{name}")
        else:
            found.convolution(f"{path}/{part}", f"{place}.{name}", 1)
    for i in range(layer.transformer):
        block = f"{place}.transformer_blocks.{i}"
        for part, name in NORMS.items():
            found.norm(f"{path}/blocks/{part}", f"{block}.{name}", layer=i)
        for part, (own, inputs, bias) in TRANSFORMER.items():
            full = (f"{block}.{name}" for name in own)
            found.linear(f"{path}/blocks/{part}", *full, inputs=inputs, bias=bias, layer=i)


def levels(model: UNet) -> tuple[int, int]:
    """How many levels there are, and residual blocks a level on the way down."""
    depth = sum(x.name.startswith("down_0_") and x.kind == "block" for x in model.layers)
    return model.halvings + 1, depth
