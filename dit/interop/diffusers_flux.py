"""Weights of the FLUX.1 of Hugging Face's ``diffusers`` (``FluxTransformer2DModel``).

The file's patches have channels first and its rotary pairs are neighbours; scale comes before shift in
the last norm.
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

SINGLE = {
    "modulation/linear": "norm.linear",
    "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
    "mlp/in": "proj_mlp",
    "out": "proj_out",
}


def build() -> Format:
    """The format, for an MMDiT like ``size="FLUX.1-dev"``, of any size."""
    return format_of(check, table)


def check(model: MMDiT) -> None:
    """Raise UserError for another structure."""
    own = {"mlp": "gelu", "bias": True, "shared_modulation": False, "qk_norm": True}
    own |= {"dual_depth": 0, "positions": "rope", "context_norm": False, "context_ends": False}
    demand(model, "FLUX.1", {"context", "pooled"}, **own)


def table(model: MMDiT) -> Table:
    """The table of names."""
    found = Table(model)
    patches_channels_first(found, "x_embedder", "proj_out")
    numbers = {"time": "timestep_embedder", "pooled": "text_embedder"}
    numbers |= {"guidance": "guidance_embedder"} if model.guidance_input else {}
    for path, name in numbers.items():
        found.linear(f"{path}/in", f"time_text_embed.{name}.linear_1")
        found.linear(f"{path}/out", f"time_text_embed.{name}.linear_2")
    found.linear("context/linear", "context_embedder")
    found.swapped("final/modulation/linear", "norm_out.linear")
    double_blocks(found, "transformer_blocks", DIFFUSERS)
    single_blocks(found, "single_transformer_blocks", SINGLE)
    return found
