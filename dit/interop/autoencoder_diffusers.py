"""Weights of the ``AutoencoderKL`` of Hugging Face's ``diffusers``, with the names of old files too.

``decoder.up_blocks`` are numbered from the coarsest level. Attention has matrices, which files of before
2023 call ``query``, ``key``, ``value`` and ``proj_attn``; what is written has the new names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from dit.interop import autoencoder
from dit.interop.autoencoder import Names
from dit.interop.mapping import Entry, Format, State
from dit.models.autoencoder import AutoencoderKL
from dit.models.unet_blocks import Layer


def place(layer: Layer, levels: int) -> str:
    """Where a layer is within its half."""
    way, *rest = layer.name.split("_")
    if way == "middle":
        return f"mid_block.resnets.{rest[0]}"
    level = layer.level if way == "down" else levels - 1 - layer.level
    if layer.kind == "conv":
        return f"{way}_blocks.{level}.{way}samplers.0"
    return f"{way}_blocks.{level}.resnets.{rest[1]}"


NEW = Names(
    place,
    stage="_blocks",
    attention="mid_block.attentions.0",
    twins=("resnets", "attentions"),
    norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    out="to_out.0",
    matrices=True,
    last_norm="conv_norm_out",
    shortcut="conv_shortcut",
    quant=("quant_conv", "post_quant_conv"),
)
OLD = dataclasses.replace(NEW, qkv=("query", "key", "value"), out="proj_attn")


def build() -> Format:
    """The format, for any ``AutoencoderKL``."""
    return Format(
        AutoencoderKL,
        entries,
        only=autoencoder.only,
        sections=sections,
        settings=autoencoder.settings,
        latents=autoencoder.LATENTS,
        stem="diffusion_pytorch_model",
    )


def names(state: Collection[str]) -> Names:
    """The names that a file uses."""
    return OLD if f"encoder.{OLD.attention}.{OLD.out}.weight" in state else NEW


def entries(model: AutoencoderKL, of: Collection[str] = ()) -> list[Entry]:
    """The table of the names that a file uses."""
    return list(autoencoder.entries(model, names(of)))


def sections(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """See ``Format``."""
    return autoencoder.sections(autoencoder.describe(state, names(state), settings), settings)
