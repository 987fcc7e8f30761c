"""Weights of SD3 and SD3.5 as their authors keep them.

A file of all that the pipeline needs has the transformer's names behind ``model.diffusion_model.``: what
is not behind it is left alone. What is written has the names without that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dit.interop import diffusers_sd3, lora
from dit.interop.mapping import Entry, Format
from dit.interop.mmdit import Table, double_blocks, format_of
from dit.models.mmdit import MMDiT

PREFIX = "model.diffusion_model."
TEXT = {
    "modulation/linear": "context_block.adaLN_modulation.1",
    "qkv": ("context_block.attn.qkv",),
    "q_norm": "context_block.attn.ln_q",
    "k_norm": "context_block.attn.ln_k",
    "out": "context_block.attn.proj",
    "mlp/in": "context_block.mlp.fc1",
    "mlp/out": "context_block.mlp.fc2",
}
IMAGE = {
    "modulation/linear": "x_block.adaLN_modulation.1",
    "qkv": ("x_block.attn.qkv",),
    "q_norm": "x_block.attn.ln_q",
    "k_norm": "x_block.attn.ln_k",
    "out": "x_block.attn.proj",
    "second/qkv": ("x_block.attn2.qkv",),
    "second/q_norm": "x_block.attn2.ln_q",
    "second/k_norm": "x_block.attn2.ln_k",
    "second/out": "x_block.attn2.proj",
    "mlp/in": "x_block.mlp.fc1",
    "mlp/out": "x_block.mlp.fc2",
}


def build() -> Format:
    """The format, for an MMDiT like ``size="SD3-medium"``, of any size."""
    more = {"fixed": positions, "only": transformer, "part": lora.ORIGINAL}
    return format_of(diffusers_sd3.check, table, **more)


def transformer(state: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's part of a file of all that the pipeline needs."""
    behind = {n.removeprefix(PREFIX): x for n, x in state.items() if n.startswith(PREFIX)}
    return behind or dict(state)


def table(model: MMDiT) -> Table:
    """The table of names."""
    found = Table(model)
    window, place = model.patch[1:], ("embed", "kernel")
    found.entries.append(Entry(place, ("x_embedder.proj.weight",), "conv", window=window))
    found.entries.append(Entry(("embed", "bias"), ("x_embedder.proj.bias",)))
    for path, name in (("time", "t_embedder"), ("pooled", "y_embedder")):
        found.linear(f"{path}/in", f"{name}.mlp.0")
        found.linear(f"{path}/out", f"{name}.mlp.2")
    found.linear("context/linear", "context_embedder")
    found.linear("final/modulation/linear", "final_layer.adaLN_modulation.1")
    found.linear("final/linear", "final_layer.linear")
    double_blocks(found, "joint_blocks", {"image": IMAGE, "text": TEXT})
    return found


def positions(model: MMDiT, shape: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """The table of positions."""
    (values,) = diffusers_sd3.positions(model).values()
    return {"pos_embed": values}
