"""Weights of the Wan autoencoders as their authors publish them: ``Wan2.1_VAE.pth``, ``Wan2.2_VAE.pth``.

Both halves of 2.1 number all their layers in one row; those of 2.2 have levels with layers within.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dit.interop import wan_vae, wan_vae_latents
from dit.interop.described import Latents
from dit.interop.mapping import Entry, Format, State
from dit.interop.wan_vae import Names
from dit.models.wan_vae import WanVAE

ROWS = {"encoder": "downsamples", "decoder": "upsamples"}


def block(half: str, i: int, j: int, blocks: int, nested: bool) -> str:
    """See ``Names``."""
    row = ROWS[half]
    return f"{row}.{i}.{row}.{j}" if nested else f"{row}.{i * (blocks + 1) + j}"


def resample(half: str, i: int, blocks: int, nested: bool) -> str:
    """See ``Names``: after the last block."""
    return block(half, i, blocks, blocks, nested)


NAMES = Names(
    embed="conv1",
    block=block,
    resample=resample,
    parts={
        "norm_in": "residual.0",
        "conv_in": "residual.2",
        "norm_out": "residual.3",
        "conv_out": "residual.6",
        "shortcut": "shortcut",
    },
    middle=("middle.0", "middle.1", "middle.2"),
    norm="head.0",
    final="head.2",
    quant=("conv1", "conv2"),
)


def build() -> Format:
    """The format, for any ``WanVAE``."""
    latents = Latents(wan_vae_latents.read, wan_vae_latents.written)
    return Format(WanVAE, entries, sections=sections, latents=latents)


def entries(model: WanVAE, of: Collection[str] = ()) -> list[Entry]:
    """The table of names."""
    return list(wan_vae.entries(model, NAMES))


def sections(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """See ``Format``."""
    return wan_vae.sections(state, NAMES, settings)
