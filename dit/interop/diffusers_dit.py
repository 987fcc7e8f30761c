"""Weights of the DiT of Hugging Face's ``diffusers`` (``DiTTransformer2DModel``).

Every block has its own copy of the embedders there; this model has one, so the copies must be equal.
The outputs agree only for models built with ``quirks="diffusers"``: see ``models/dit.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dit.interop import mapping
from dit.interop.mapping import Entry, Format, linear
from dit.models.dit import DiT
from dit.types import Params

BLOCK = {
    "modulation/linear": "norm1.linear",
    "attention/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention/out": "attn1.to_out.0",
    "mlp/in": "ff.net.0.proj",
    "mlp/out": "ff.net.2",
}


def build() -> Format:
    """The format, for models that ``mapping.check`` accepts."""
    return Format(DiT, to_params, to_state)


def entries(model: DiT) -> list[Entry]:
    """The table of names."""

    def copies(name: str) -> list[str]:
        return [f"transformer_blocks.{i}.norm1.emb.{name}" for i in range(model.depth)]

    tables = copies("class_embedder.embedding_table.weight")
    return [
        Entry(("embed", "kernel"), ("pos_embed.proj.weight",), "conv", window=model.patch[1:]),
        Entry(("embed", "bias"), ("pos_embed.proj.bias",)),
        *linear("time/in", *copies("timestep_embedder.linear_1"), copies=True),
        *linear("time/out", *copies("timestep_embedder.linear_2"), copies=True),
        Entry(("label", "table"), tuple(tables), copies=True),
        *mapping.blocks(model.depth, "transformer_blocks", BLOCK),
        *linear("final/modulation/linear", "proj_out_1"),
        *linear("final/linear", "proj_out_2"),
    ]


def to_params(state: Mapping[str, np.ndarray], model: DiT, shape: tuple[int, ...]) -> Params:
    """See ``Format``."""
    mapping.check(model)
    return mapping.to_params(state, entries(model), model, shape)


def to_state(params: Params, model: DiT, shape: tuple[int, ...]) -> mapping.State:
    """See ``Format``."""
    mapping.check(model)
    return mapping.to_state(params, entries(model))
