"""Weights of the FLUX.2 of Hugging Face's ``diffusers`` (``Flux2Transformer2DModel``).

No biases; three modulations for all blocks; a single block has one array for queries, keys, values and
the MLP's gate and value. Rotary pairs are neighbours; scale comes before shift in the last norm.
"""

from __future__ import annotations

from dit.interop.mapping import Format
from dit.interop.mmdit import (
    DIFFUSERS,
    Table,
    demand,
    double_blocks,
    format_of,
    patches_channels_first,
    single_blocks,
)
from dit.models.mmdit import MMDiT

DOUBLE = {
    "image": DIFFUSERS["image"] | {"mlp/in": "ff.linear_in", "mlp/out": "ff.linear_out"},
    "text": DIFFUSERS["text"]
    | {"mlp/in": "ff_context.linear_in", "mlp/out": "ff_context.linear_out"},
}
SINGLE = {
    "qkv": ("attn.to_qkv_mlp_proj",),
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
    "out": "attn.to_out",
}


def build() -> Format:
    """The format, for an MMDiT like ``size="FLUX.2-dev"``, of any size."""
    return format_of(check, table)


def check(model: MMDiT) -> None:
    """Raise UserError for another structure."""
    own = {"mlp": "swiglu", "bias": False, "shared_modulation": True, "qk_norm": True}
    own |= {"positions": "rope_text", "context_norm": False}
    demand(model, "FLUX.2", {"context"}, **own)


def table(model: MMDiT) -> Table:
    """The table of names."""
    found = Table(model)
    patches_channels_first(found, "x_embedder", "proj_out")
    numbers = {"time": "timestep_embedder"}
    numbers |= {"guidance": "guidance_embedder"} if model.guidance_input else {}
    for path, name in numbers.items():
        found.linear(f"{path}/in", f"time_guidance_embed.{name}.linear_1")
        found.linear(f"{path}/out", f"time_guidance_embed.{name}.linear_2")
    found.linear("context/linear", "context_embedder")
    found.swapped("final/modulation/linear", "norm_out.linear")
    found.linear("modulation_image/linear", "double_stream_modulation_img.linear")
    found.linear("modulation_text/linear", "double_stream_modulation_txt.linear")
    if model.single_depth:
        found.linear("modulation_row/linear", "single_stream_modulation.linear")
    double_blocks(found, "transformer_blocks", DOUBLE)
    single_blocks(found, "single_transformer_blocks", SINGLE)
    return found
