"""Weights of the original DiT: a state dict, which ``files.read`` takes out of checkpoints.

The fixed table of positions is part of that state: it is checked on the way in, computed on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from dit.interop import described, mapping
from dit.interop.mapping import Entry, Format, State, linear
from dit.models.dit import DiT
from dit.models.patchify import grid
from dit.models.sizes import SIZES
from dit.types import UserError

BLOCK = {
    "modulation/linear": "adaLN_modulation.1",
    "attention/qkv": "attn.qkv",
    "attention/out": "attn.proj",
    "mlp/in": "mlp.fc1",
    "mlp/out": "mlp.fc2",
}


def build() -> Format:
    """The format, for models that ``mapping.check`` accepts and square images."""
    return Format(DiT, entries, fixed=positions, sections=sections)


def entries(model: DiT, names: Collection[str] = ()) -> list[Entry]:
    """The table of names."""
    mapping.check(model)
    return [
        Entry(("embed", "kernel"), ("x_embedder.proj.weight",), "conv", window=model.patch[1:]),
        Entry(("embed", "bias"), ("x_embedder.proj.bias",)),
        *linear("time/in", "t_embedder.mlp.0"),
        *linear("time/out", "t_embedder.mlp.2"),
        Entry(("label", "table"), ("y_embedder.embedding_table.weight",)),
        *mapping.blocks(model.depth, "blocks", BLOCK),
        *linear("final/modulation/linear", "final_layer.adaLN_modulation.1"),
        *linear("final/linear", "final_layer.linear"),
    ]


def positions(model: DiT, shape: tuple[int, ...]) -> State:
    """The table that is part of the state."""
    mapping.check(model)
    return {"pos_embed": sinusoids(model, shape)}


def sinusoids(model: DiT, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 table ``(1, n, d)``, computed in float64 as the original does."""
    _, height, width = grid(tuple(shape[:3]), model.patch)
    y, x = (p.reshape(-1, 1) for p in np.meshgrid(range(height), range(width), indexing="ij"))
    quarter = model.width // 4
    w = 1 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    table = [np.sin(x * w), np.cos(x * w), np.sin(y * w), np.cos(y * w)]
    return np.concatenate(table, axis=1)[None].astype(np.float32)


def sections(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model by the shapes of its tensors, and the process of the published DiT; not a SiT's.

    The number of heads is that of the published size of this width.
    """
    names = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight")
    names = (*names, "final_layer.linear.bias")
    absent = [name for name in names if name not in state]
    if absent:
        raise UserError(f"the weights lack {absent[0]!r}: they are not an original DiT's")
    kernel, table, classes, last = (state[name].shape for name in names)
    width, channels, patch, side = kernel[0], *kernel[1:3], math.isqrt(table[1])
    heads = {known: heads for _, known, heads in SIZES.values()}.get(width)
    if heads is None:
        raise UserError(
            f"the weights are of width {width}, and no published DiT tells its heads: give --config=FILE"
        )
    return {
        "model": {
            "name": "dit",
            "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            "width": width,
            "heads": heads,
            "patch": patch,
            "learn_sigma": last[0] == 2 * channels * patch**2,
        },
        **described.published((1, side * patch, side * patch, channels), classes[0] - 1),
    }
