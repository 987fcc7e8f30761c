"""Weights of the Qwen-Image of Hugging Face's ``diffusers`` (``QwenImageTransformer2DModel``).

The file's patches have channels first and its rotary pairs are neighbours; scale comes before shift in
the last norm.
"""

from __future__ import annotations

from typing import Any

from dit.interop import described
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
from dit.types import Count, UserError, Whole

NAME = "QwenImageTransformer2DModel"
PACKED = 4  # latents in a token
ALWAYS = {  # settings of theirs that have one value here
    "patch_size": 2,
    "guidance_embeds": False,
    "zero_cond_t": False,
    "use_additional_t_cond": False,
    "use_layer3d_rope": False,
}
DOUBLE = {
    stream: DIFFUSERS[stream]
    | {"modulation/linear": f"{short}_mod.1"}
    | {"mlp/in": f"{short}_mlp.net.0.proj", "mlp/out": f"{short}_mlp.net.2"}
    for stream, short in (("image", "img"), ("text", "txt"))
}


def build() -> Format:
    """The format, for an MMDiT like ``size="Qwen-Image"``, of any size."""
    sections = described.by_settings(NAME, ALWAYS, sizes)
    more = {"sections": sections, "settings": settings, "stem": "diffusion_pytorch_model"}
    return format_of(check, table, **more)


def sizes(
    *,
    num_layers: Count = 60,
    num_attention_heads: Count = 24,
    attention_head_dim: Count = 128,
    joint_attention_dim: Count = 3584,
    in_channels: Count = 64,
    out_channels: Count = 16,
    axes_dims_rope: tuple[Whole, ...] = (16, 56, 56),
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; samples are of 1024 pixels.

    ``in_channels`` are those of a patch of 2x2, ``out_channels`` those of a latent, as here.
    """
    if in_channels != PACKED * out_channels:
        raise UserError(
            f"config.json says in_channels={in_channels}, out_channels={out_channels}; expected "
            f"{PACKED} times as many of the first"
        )
    model = {
        "name": "mmdit",
        "depth": num_layers,
        "width": num_attention_heads * attention_head_dim,
        "heads": num_attention_heads,
        "patch": 2,
        "context_dim": joint_attention_dim,
        "context_norm": True,
        "context_ends": False,
        "positions": "msrope",
        "rope_axes": tuple(axes_dims_rope),
        "null": "zero",
    }
    grid = "shifted:shift=2.0008,terminal=0.02"  # exp(mu) of 4096 tokens
    samples = {"grid": grid, "steps": 50, "guidance": 4.0}
    return {"model": model, **described.flow((1, 128, 128, out_channels), **samples)}


def settings(model: MMDiT, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model; UserError for what that library's cannot be."""
    if model.patch != (1, 2, 2) or model.mlp_ratio != 4.0:
        raise UserError(
            f"got a patch of {model.patch} and mlp_ratio={model.mlp_ratio}; a {NAME} has (1, 2, 2) and 4"
        )
    return {
        "_class_name": NAME,
        **ALWAYS,
        "num_layers": model.depth,
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "joint_attention_dim": model.context_dim,
        "in_channels": model.in_channels * PACKED,
        "out_channels": model.out_channels,
        "axes_dims_rope": list(model.rope_axes),
    }


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
