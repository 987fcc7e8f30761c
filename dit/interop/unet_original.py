"""Weights of Stable Diffusion's U-Net as its authors keep them, in 1, 2 and XL.

A file of all that the pipeline needs has the U-Net's names behind ``model.diffusion_model.``: what is
not behind it, averages (``model_ema``) too, is left alone. What is written has the names without that.
Parts of the network are numbered in order, on the way down, in the middle and on the way up.
"""

from __future__ import annotations

from collections.abc import Mapping

from dit.interop import lora, sd3_original
from dit.interop.mapping import Format, State
from dit.interop.unet import Names, format_of, levels
from dit.models.unet import UNet

WHOLE = {
    "embed": "input_blocks.0.0",
    "time/in": "time_embed.0",
    "time/out": "time_embed.2",
    "pooled/in": "label_emb.0.0",
    "pooled/out": "label_emb.0.2",
    "norm": "out.0",
    "final": "out.2",
}
BLOCK = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "modulation": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "shortcut": "skip_connection",
}


def build() -> Format:
    """The format, for a U-Net like ``size="SD-1.5"``, of any size."""
    return format_of(Names(WHOLE, BLOCK, places), only=network, part=lora.ORIGINAL)


def network(state: Mapping[str, object]) -> State:
    """The U-Net's part of a file of all that the pipeline needs."""
    within = "state_dict."
    found = {n.removeprefix(within): x for n, x in state.items() if n.startswith(within)}
    return sd3_original.transformer(found or state)


def places(model: UNet) -> dict[str, tuple[str, str]]:
    """Where each layer is."""
    count, depth = levels(model)
    found = {}
    for layer in model.layers:
        way, *rest = layer.name.split("_")
        if way == "middle":
            found[layer.name] = (f"middle_block.{2 * int(rest[0])}", "middle_block.1")
            continue
        i = rest[1]
        if way == "down":
            number = 1 + layer.level * (depth + 1) + (depth if i == "halve" else int(i))
            part = "0.op" if i == "halve" else "0"
            found[layer.name] = (f"input_blocks.{number}.{part}", f"input_blocks.{number}.1")
            continue
        number = (count - 1 - layer.level) * (depth + 1) + (depth if i == "double" else int(i))
        part = "0"
        if i == "double":  # after the last block of its level, and what transforms there
            before = next(x for x in model.layers if x.name == f"up_{layer.level}_{depth}")
            part = "2.conv" if before.transformer else "1.conv"
        found[layer.name] = (f"output_blocks.{number}.{part}", f"output_blocks.{number}.1")
    return found
