"""Weights of the original DiT (and SiT): a state dict, which ``files.read`` takes out of checkpoints.

The fixed table of positions is part of that state: it is checked on the way in, computed on the way out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dit.interop import mapping
from dit.interop.mapping import Entry, Format, linear
from dit.models.dit import DiT
from dit.models.patchify import grid
from dit.types import Params, UserError

BLOCK = {
    "modulation/linear": "adaLN_modulation.1",
    "attention/qkv": "attn.qkv",
    "attention/out": "attn.proj",
    "mlp/in": "mlp.fc1",
    "mlp/out": "mlp.fc2",
}


def build() -> Format:
    """The format, for models that ``mapping.check`` accepts and square images."""
    return Format(DiT, to_params, to_state)


def entries(model: DiT) -> list[Entry]:
    """The table of names."""
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


def to_params(state: Mapping[str, np.ndarray], model: DiT, shape: tuple[int, ...]) -> Params:
    """See ``Format``."""
    mapping.check(model)
    state = dict(state)
    if "pos_embed" not in state:
        raise UserError("the weights lack 'pos_embed': they are not an original DiT's state dict")
    found, expected = state.pop("pos_embed"), positions(model, shape)
    if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-5):
        raise UserError(
            f"'pos_embed' of shape {found.shape} is not the sinusoidal table {expected.shape} of data "
            f"of shape {shape}"
        )
    return mapping.to_params(state, entries(model), model, shape)


def to_state(params: Params, model: DiT, shape: tuple[int, ...]) -> mapping.State:
    """See ``Format``."""
    mapping.check(model)
    table = {"pos_embed": positions(model, shape)}
    return table | mapping.to_state(params, entries(model))


def positions(model: DiT, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 table ``(1, n, d)``, computed in float64 as the original does."""
    _, height, width = grid(tuple(shape[:3]), model.patch)
    y, x = (p.reshape(-1, 1) for p in np.meshgrid(range(height), range(width), indexing="ij"))
    quarter = model.width // 4
    w = 1 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    table = [np.sin(x * w), np.cos(x * w), np.sin(y * w), np.cos(y * w)]
    return np.concatenate(table, axis=1)[None].astype(np.float32)
