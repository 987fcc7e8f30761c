"""Weights of the SD3 and SD3.5 of Hugging Face's ``diffusers`` (``SD3Transformer2DModel``).

Scale comes before shift in the last norm and in the last block's norm of the text. The fixed table of
positions is part of the file: ``position_table`` of the model has its number of rows.
"""

from __future__ import annotations

import numpy as np

from dit.interop.mapping import Entry, Format
from dit.interop.mmdit import DIFFUSERS, Table, demand, double_blocks, format_of
from dit.models.mmdit import MMDiT
from dit.types import UserError


def build() -> Format:
    """The format, for an MMDiT like ``size="SD3-medium"``, of any size."""
    return format_of(check, table, fixed=positions)


def check(model: MMDiT) -> None:
    """Raise UserError for another structure."""
    own = {"single_depth": 0, "mlp": "gelu", "bias": True, "shared_modulation": False}
    own |= {"positions": "sincos", "context_norm": False, "context_ends": True}
    demand(model, "SD3", {"context", "pooled"}, guidance_input=False, **own)
    if model.position_table is None:
        raise UserError("this format has a table of positions: give position_table, as (192, 64)")


def table(model: MMDiT) -> Table:
    """The table of names."""
    found = Table(model)
    window, place = model.patch[1:], ("embed", "kernel")
    found.entries.append(Entry(place, ("pos_embed.proj.weight",), "conv", window=window))
    found.entries.append(Entry(("embed", "bias"), ("pos_embed.proj.bias",)))
    time = "time_text_embed.timestep_embedder"
    for path, name in (
        ("time/in", f"{time}.linear_1"),
        ("time/out", f"{time}.linear_2"),
        ("pooled/in", "time_text_embed.text_embedder.linear_1"),
        ("pooled/out", "time_text_embed.text_embedder.linear_2"),
        ("context/linear", "context_embedder"),
        ("final/linear", "proj_out"),
    ):
        found.linear(path, name)
    found.swapped("final/modulation/linear", "norm_out.linear")
    double_blocks(found, "transformer_blocks", DIFFUSERS, scale_first=True)
    return found


def positions(model: MMDiT, shape: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """The whole table of positions, of which an image has the middle, computed in float64."""
    most, base = model.position_table
    y, x = np.meshgrid(np.arange(most), np.arange(most), indexing="ij")
    quarter = model.width // 4
    w = 1 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    angles = [place.reshape(-1, 1) * (base / most) * w for place in (x, y)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return {"pos_embed.pos_embed": table[None].astype(np.float32)}
