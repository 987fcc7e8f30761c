"""Weights of the ``AutoencoderKL`` as its authors publish it: Stable Diffusion's, SD3's, FLUX's, VA-VAE.

``decoder.up`` is numbered from the finest level, and attention has 1x1 convolutions. FLUX.2 keeps the
convolutions at the latents within its halves. The autoencoder may be a part of a whole model's file.
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

WITHIN = ("first_stage_model.", "vae.", "state_dict.")  # where the autoencoder is in a file of more
BESIDE = ("loss.", "model_ema.", "foundation_model.", "linear_proj.")  # of its own training


def place(layer: Layer, levels: int) -> str:
    """Where a layer is within its half."""
    way, *rest = layer.name.split("_")
    if way == "middle":
        return f"mid.block_{int(rest[0]) + 1}"
    return f"{way}.{rest[0]}." + (f"{way}sample" if layer.kind == "conv" else f"block.{rest[1]}")


OUTSIDE = Names(
    place,
    stage="",
    attention="mid.attn_1",
    twins=("block", "attn"),
    norm="norm",
    qkv=("q", "k", "v"),
    out="proj_out",
    matrices=False,
    last_norm="norm_out",
    shortcut="nin_shortcut",
    quant=("quant_conv", "post_quant_conv"),
)
INSIDE = dataclasses.replace(OUTSIDE, quant=("encoder.quant_conv", "decoder.post_quant_conv"))


def build() -> Format:
    """The format, for any ``AutoencoderKL``; what is written has the names of before FLUX.2."""
    return Format(
        AutoencoderKL,
        entries,
        only=lambda state: autoencoder.only(only(state)),
        sections=sections,
        latents=autoencoder.LATENTS,
    )


def names(state: Collection[str]) -> Names:
    """The names that a file uses."""
    return INSIDE if f"{INSIDE.quant[0]}.weight" in state else OUTSIDE


def only(state: Mapping[str, Any]) -> State:
    """The autoencoder's part of a file, without the prefix that it has there."""
    for prefix in WITHIN:
        found = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
        state = found or state
    return {name: x for name, x in state.items() if not name.startswith(BESIDE)}


def entries(model: AutoencoderKL, of: Collection[str] = ()) -> list[Entry]:
    """The table of the names that a file uses."""
    return list(autoencoder.entries(model, names(of)))


def sections(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """See ``Format``."""
    return autoencoder.sections(autoencoder.describe(state, names(state), settings), settings)
