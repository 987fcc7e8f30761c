"""Weights of FLUX.1 and FLUX.2 as their authors keep them, in a file of the transformer alone.

Queries, keys and values are one array, in single blocks with the MLP's input too. Patches have channels
first, rotary pairs are neighbours.
"""

from __future__ import annotations

from typing import Any

from dit.interop import diffusers_flux, diffusers_flux2, lora
from dit.interop.mapping import Format
from dit.interop.mmdit import (
    Table,
    double_blocks,
    format_of,
    patches_channels_first,
    single_blocks,
)
from dit.models.mmdit import MMDiT

SINGLE = {
    "modulation/linear": "modulation.lin",
    "qkv": ("linear1",),
    "q_norm": "norm.query_norm",
    "k_norm": "norm.key_norm",
    "out": "linear2",
}


def double(stream: str) -> dict[str, Any]:
    """Names of one stream in a double block."""
    return {
        "modulation/linear": f"{stream}_mod.lin",
        "qkv": (f"{stream}_attn.qkv",),
        "q_norm": f"{stream}_attn.norm.query_norm",
        "k_norm": f"{stream}_attn.norm.key_norm",
        "out": f"{stream}_attn.proj",
        "mlp/in": f"{stream}_mlp.0",
        "mlp/out": f"{stream}_mlp.2",
    }


def build() -> Format:
    """The format, for an MMDiT like ``size="FLUX.1-dev"`` or ``"FLUX.2-dev"``, of any size."""
    return format_of(check, table, part=lora.ORIGINAL)


def check(model: MMDiT) -> None:
    """Raise UserError for another structure."""
    (diffusers_flux2 if model.shared_modulation else diffusers_flux).check(model)


def table(model: MMDiT) -> Table:
    """The table of names."""
    found = Table(model)
    patches_channels_first(found, "img_in", "final_layer.linear")
    numbers = {"time": "time_in"}
    numbers |= {"pooled": "vector_in"} if model.pooled_dim is not None else {}
    numbers |= {"guidance": "guidance_in"} if model.guidance_input else {}
    for path, name in numbers.items():
        found.linear(f"{path}/in", f"{name}.in_layer")
        found.linear(f"{path}/out", f"{name}.out_layer")
    found.linear("context/linear", "txt_in")
    found.linear("final/modulation/linear", "final_layer.adaLN_modulation.1")
    if model.shared_modulation:
        found.linear("modulation_image/linear", "double_stream_modulation_img.lin")
        found.linear("modulation_text/linear", "double_stream_modulation_txt.lin")
        if model.single_depth:
            found.linear("modulation_row/linear", "single_stream_modulation.lin")
    names = {"image": double("img"), "text": double("txt")}
    double_blocks(found, "double_blocks", names, scale="scale")
    single_blocks(found, "single_blocks", SINGLE, scale="scale")
    return found
