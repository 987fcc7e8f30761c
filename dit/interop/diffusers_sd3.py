"""Weights of the SD3 and SD3.5 of Hugging Face's ``diffusers`` (``SD3Transformer2DModel``).

Scale comes before shift in the last norm and in the last block's norm of the text. The fixed table of
positions is part of the file: ``position_table`` of the model has its number of rows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dit.interop import described
from dit.interop.mapping import Entry, Format
from dit.interop.mmdit import DIFFUSERS, Table, demand, double_blocks, format_of
from dit.models.mmdit import MMDiT
from dit.types import Count, UserError, Whole

NAME = "SD3Transformer2DModel"


def build() -> Format:
    """The format, for an MMDiT like ``size="SD3-medium"``, of any size."""
    sections = described.by_settings(NAME, {}, sizes)
    more = {"sections": sections, "settings": settings, "stem": "diffusion_pytorch_model"}
    return format_of(check, table, fixed=positions, **more)


def sizes(
    *,
    num_layers: Count = 18,
    num_attention_heads: Count = 18,
    attention_head_dim: Count = 64,
    caption_projection_dim: Count | None = None,
    joint_attention_dim: Count = 4096,
    pooled_projection_dim: Count = 2048,
    in_channels: Count = 16,
    out_channels: Count | None = None,
    patch_size: Count = 2,
    sample_size: Count = 128,
    pos_embed_max_size: Count = 96,
    dual_attention_layers: tuple[Whole, ...] = (),
    qk_norm: Literal["rms_norm"] | None = None,
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; the sampler is that of the authors."""
    width, dual = num_attention_heads * attention_head_dim, tuple(dual_attention_layers)
    if caption_projection_dim not in (None, width) or out_channels not in (None, in_channels):
        raise UserError(
            f"config.json says caption_projection_dim={caption_projection_dim}, out_channels="
            f"{out_channels}; expected {width} and {in_channels}, as all published ones have"
        )
    if dual != tuple(range(len(dual))):
        raise UserError(f"config.json says dual_attention_layers={dual}; expected the first layers")
    model = {
        "name": "mmdit",
        "depth": num_layers,
        "dual_depth": len(dual),
        "width": width,
        "heads": num_attention_heads,
        "patch": patch_size,
        "context_dim": joint_attention_dim,
        "pooled_dim": pooled_projection_dim,
        "qk_norm": qk_norm is not None,
        "positions": "sincos",
        "position_table": (pos_embed_max_size, sample_size // patch_size),
        "context_ends": True,
        "null": "zero",
    }
    grid = "shifted:shift=3.0,base=linspace,last=0.002994"
    shape = (1, sample_size, sample_size, in_channels)
    return {"model": model, **described.flow(shape, grid=grid, steps=28, guidance=7.0)}


def settings(model: MMDiT, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model."""
    most, base = model.position_table
    return {
        "_class_name": NAME,
        "num_layers": model.depth,
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "caption_projection_dim": model.width,
        "joint_attention_dim": model.context_dim,
        "pooled_projection_dim": model.pooled_dim,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "patch_size": model.patch[1],
        "sample_size": base * model.patch[1],
        "pos_embed_max_size": most,
        "dual_attention_layers": list(range(model.dual_depth)),
        "qk_norm": "rms_norm" if model.qk_norm else None,
    }


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
