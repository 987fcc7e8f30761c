"""Weights of the DiT of Hugging Face's ``diffusers`` (``DiTTransformer2DModel``).

Every block has its own copy of the embedders there; this model has one, so the copies must be equal.
The outputs agree only for models built with ``quirks="diffusers"``: see ``models/dit.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dit.interop import described, mapping
from dit.interop.mapping import Entry, Format, linear
from dit.models.dit import DiT
from dit.types import Count, UserError

NAME = "DiTTransformer2DModel"
BLOCK = {
    "modulation/linear": "norm1.linear",
    "attention/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention/out": "attn1.to_out.0",
    "mlp/in": "ff.net.0.proj",
    "mlp/out": "ff.net.2",
}
ALWAYS = {  # settings of theirs that have one value here
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "upcast_attention": False,
}


def build() -> Format:
    """The format, for models that ``mapping.check`` accepts."""
    sections = described.by_settings(NAME, ALWAYS, sizes)
    return Format(
        DiT, entries, sections=sections, settings=settings, stem="diffusion_pytorch_model"
    )


def entries(model: DiT, names: Collection[str] = ()) -> list[Entry]:
    """The table of names."""
    mapping.check(model)

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


def sizes(
    *,
    num_attention_heads: Count = 16,
    attention_head_dim: Count = 72,
    in_channels: Count = 4,
    out_channels: Count | None = None,
    num_layers: Count = 28,
    sample_size: Count = 32,
    patch_size: Count = 2,
    num_embeds_ada_norm: Count = 1000,
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; the process is the published DiT's."""
    out_channels = out_channels or in_channels
    if out_channels not in (in_channels, 2 * in_channels):
        raise UserError(
            f"config.json says out_channels={out_channels}; expected in_channels={in_channels}, or "
            "twice as many, with a learned variance"
        )
    return {
        "model": {
            "name": "dit",
            "depth": num_layers,
            "width": num_attention_heads * attention_head_dim,
            "heads": num_attention_heads,
            "patch": patch_size,
            "learn_sigma": out_channels != in_channels,
            "quirks": "diffusers",
        },
        **described.published((1, sample_size, sample_size, in_channels), num_embeds_ada_norm),
    }


def settings(model: DiT, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model; UserError for what that library's cannot be."""
    ratio, patch = dict(model.block_options)["mlp_ratio"], model.patch[1]
    if shape[1] != shape[2] or ratio != 4.0 or model.patch[2] != patch:
        raise UserError(
            f"got data of {shape[1]}x{shape[2]}, a patch of {model.patch} and mlp_ratio={ratio}; a "
            f"{NAME} has square ones, and a ratio of 4"
        )
    return {
        "_class_name": NAME,
        **ALWAYS,
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "num_layers": model.depth,
        "sample_size": shape[1],
        "patch_size": patch,
        "num_embeds_ada_norm": model.num_classes,
        "norm_eps": 1e-5,
    }
