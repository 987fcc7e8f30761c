"""Weights of the FLUX.2 of Hugging Face's ``diffusers`` (``Flux2Transformer2DModel``).

No biases; three modulations for all blocks; a single block has one array for queries, keys, values and
the MLP's gate and value. Rotary pairs are neighbours; scale comes before shift in the last norm.
"""

from __future__ import annotations

import math
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
    single_blocks,
)
from dit.models.mmdit import MMDiT
from dit.types import Count, Positive, Tiny, UserError, Whole

NAME = "Flux2Transformer2DModel"
ALWAYS = {"patch_size": 1, "timestep_guidance_channels": 256}
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
    sections = described.by_settings(NAME, ALWAYS, sizes)
    more = {"sections": sections, "settings": settings, "stem": "diffusion_pytorch_model"}
    return format_of(check, table, **more)


def sizes(
    *,
    num_layers: Count = 8,
    num_single_layers: Count = 48,
    num_attention_heads: Count = 48,
    attention_head_dim: Count = 128,
    joint_attention_dim: Count = 15360,
    in_channels: Count = 128,
    out_channels: Count | None = None,
    mlp_ratio: Positive = 3.0,
    axes_dims_rope: tuple[Whole, ...] = (32, 32, 32, 32),
    rope_theta: Positive = 2000.0,
    eps: Tiny = 1e-6,
    guidance_embeds: bool = True,
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; samples are of 1024 pixels, in 50 steps.

    Their MLP's ratio is that of its hidden size, ours that of one without gate and as many weights.
    """
    if out_channels not in (None, in_channels):
        raise UserError(
            f"config.json says in_channels={in_channels}, out_channels={out_channels}; expected the same"
        )
    model = {
        "name": "mmdit",
        "depth": num_layers,
        "single_depth": num_single_layers,
        "width": num_attention_heads * attention_head_dim,
        "heads": num_attention_heads,
        "patch": 1,
        "context_dim": joint_attention_dim,
        "guidance_input": guidance_embeds,
        "mlp": "swiglu",
        "mlp_ratio": 1.5 * mlp_ratio,
        "bias": False,
        "shared_modulation": True,
        "positions": "rope_text",
        "rope_axes": tuple(axes_dims_rope),
        "rope_theta": float(rope_theta),
        "norm_eps": eps,
        "null": "zero",
    }
    shift = math.exp(mu(64 * 64, 50))
    samples = {"grid": f"shifted:shift={shift:.4f}", "steps": 50}
    samples["guidance"] = 1.0 if guidance_embeds else 4.0
    return {"model": model, **described.flow((1, 64, 64, in_channels), **samples)}


def mu(tokens: int, steps: int) -> float:
    """The logarithm of the shift: on a line in tokens for 10 steps, one for 200, and between them."""
    few, many = 8.73809524e-5 * tokens + 1.89833333, 1.6927e-4 * tokens + 0.45666666
    return many if tokens > 4300 else few + (steps - 10) / 190 * (many - few)


def settings(model: MMDiT, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model; UserError for what that library's cannot be."""
    ratio = model.mlp_ratio / 1.5
    if model.patch != (1, 1, 1) or int(model.width * ratio) != model.width * ratio:
        raise UserError(
            f"got a patch of {model.patch} and mlp_ratio={model.mlp_ratio}; a {NAME} has (1, 1, 1), and "
            "a hidden size of a whole number"
        )
    return {
        "_class_name": NAME,
        **ALWAYS,
        "num_layers": model.depth,
        "num_single_layers": model.single_depth,
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "joint_attention_dim": model.context_dim,
        "in_channels": model.in_channels,
        "mlp_ratio": ratio,
        "axes_dims_rope": list(model.rope_axes),
        "rope_theta": model.rope_theta,
        "eps": model.norm_eps,
        "guidance_embeds": model.guidance_input,
    }


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
