"""Weights of the Qwen-Image of Hugging Face's ``diffusers`` (``QwenImageTransformer2DModel``).

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
)
from dit.models.mmdit import MMDiT

DOUBLE = {
    stream: DIFFUSERS[stream]
    | {"modulation/linear": f"{short}_mod.1"}
    | {"mlp/in": f"{short}_mlp.net.0.proj", "mlp/out": f"{short}_mlp.net.2"}
    for stream, short in (("image", "img"), ("text", "txt"))
}


def build() -> Format:
    """The format, for an MMDiT like ``size="Qwen-Image"``, of any size."""
    return format_of(check, table)


def check(model: MMDiT) -> None:
    """Raise UserError for another structure."""
    own = {"mlp": "gelu", "bias": True, "shared_modulation": False, "qk_norm": True}
    own |= {"single_depth": 0, "dual_depth": 0, "context_norm": True, "context_ends": False}
    demand(model, "Qwen-Image", {"context"}, positions="msrope", guidance_input=False, **own)


def table(model: MMDiT) -> Table:
    """The table of names."""
    found = Table(model)
    patches_channels_first(found, "img_in", "proj_out")
    for part, number in (("in", 1), ("out", 2)):
        found.linear(f"time/{part}", f"time_text_embed.timestep_embedder.linear_{number}")
    found.add("context/norm/scale", ["txt_norm"], "weight", None)
    found.linear("context/linear", "txt_in")
    found.swapped("final/modulation/linear", "norm_out.linear")
    double_blocks(found, "transformer_blocks", DOUBLE)
    return found
