"""Weights of the Wan autoencoders of Hugging Face's ``diffusers`` (``AutoencoderKLWan``).

The levels of the decoder are numbered from the coarsest on. Wan 2.1's encoder numbers all its layers in
one row; Wan 2.2's has levels. Qwen-Image's (``AutoencoderKLQwenImage``) has the names of Wan 2.1's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dit.interop import wan_vae, wan_vae_latents
from dit.interop.described import Latents
from dit.interop.mapping import Entry, Format, State
from dit.interop.wan_vae import Names
from dit.models.wan_vae import WanVAE
from dit.types import UserError

CLASSES = ("AutoencoderKLWan", "AutoencoderKLQwenImage")


def block(half: str, i: int, j: int, blocks: int, nested: bool) -> str:
    """See ``Names``."""
    if half == "encoder":
        return f"down_blocks.{i}.resnets.{j}" if nested else f"down_blocks.{i * (blocks + 1) + j}"
    return f"up_blocks.{i}.resnets.{j}"


def resample(half: str, i: int, blocks: int, nested: bool) -> str:
    """See ``Names``."""
    if half == "encoder":
        return f"down_blocks.{i}.downsampler" if nested else block(half, i, blocks, blocks, nested)
    return f"up_blocks.{i}.upsampler" if nested else f"up_blocks.{i}.upsamplers.0"


NAMES = Names(
    embed="conv_in",
    block=block,
    resample=resample,
    parts={
        "norm_in": "norm1",
        "conv_in": "conv1",
        "norm_out": "norm2",
        "conv_out": "conv2",
        "shortcut": "conv_shortcut",
    },
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm="norm_out",
    final="conv_out",
    quant=("quant_conv", "post_quant_conv"),
)


def build() -> Format:
    """The format, for any ``WanVAE``."""
    return Format(
        WanVAE,
        entries,
        sections=sections,
        settings=wan_vae.settings,
        latents=Latents(wan_vae_latents.read, wan_vae_latents.written),
        stem="diffusion_pytorch_model",
    )


def entries(model: WanVAE, of: Collection[str] = ()) -> list[Entry]:
    """The table of names."""
    return list(wan_vae.entries(model, NAMES))


def sections(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """See ``Format``."""
    check_settings(settings)
    return wan_vae.sections(state, NAMES, settings)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError for the ``config.json`` of another network."""
    name = settings.get("_class_name", CLASSES[0])
    if name not in CLASSES:
        raise UserError(f"config.json is of a {name}; expected one of {', '.join(CLASSES)}")
