"""Weights of the FLUX.1 of Hugging Face's ``diffusers`` (``FluxTransformer2DModel``).

The file's patches have channels first and its rotary pairs are neighbours; scale comes before shift in
the last norm.
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
from dit.types import Count, UserError, Whole

NAME = "FluxTransformer2DModel"
PACKED = 4  # latents in a token
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
    sections = described.by_settings(NAME, {"patch_size": 1}, sizes)
    more = {"sections": sections, "settings": settings, "stem": "diffusion_pytorch_model"}
    return format_of(check, table, **more)


def sizes(
    *,
    num_layers: Count = 19,
    num_single_layers: Count = 38,
    num_attention_heads: Count = 24,
    attention_head_dim: Count = 128,
    joint_attention_dim: Count = 4096,
    pooled_projection_dim: Count = 768,
    in_channels: Count = 64,
    out_channels: Count | None = None,
    guidance_embeds: bool = False,
    axes_dims_rope: tuple[Whole, ...] = (16, 56, 56),
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; samples are of 1024 pixels.

    Their channels are those of a patch of 2x2, ours of a latent. A network that is told its guidance
    (dev) is sampled with shifted times, one that is not (schnell) in four steps without.
    """
    if in_channels % PACKED or out_channels not in (None, in_channels):
        raise UserError(
            f"config.json says in_channels={in_channels}, out_channels={out_channels}; expected the "
            f"same multiple of {PACKED}"
        )
    model = {
        "name": "mmdit",
        "depth": num_layers,
        "single_depth": num_single_layers,
        "width": num_attention_heads * attention_head_dim,
        "heads": num_attention_heads,
        "patch": 2,
        "context_dim": joint_attention_dim,
        "pooled_dim": pooled_projection_dim,
        "guidance_input": guidance_embeds,
        "rope_axes": tuple(axes_dims_rope),
        "null": "zero",
    }
    slow = {"grid": f"shifted:shift={math.exp(1.15):.4f}", "steps": 28}
    fast = {"grid": "uniform", "steps": 4}
    samples = {**(slow if guidance_embeds else fast), "guidance": 1.0}
    return {"model": model, **described.flow((1, 128, 128, in_channels // PACKED), **samples)}


def settings(model: MMDiT, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model; UserError for what that library's cannot be."""
    if model.patch != (1, 2, 2):
        raise UserError(f"got a patch of {model.patch}; a {NAME} has (1, 2, 2)")
    return {
        "_class_name": NAME,
        "patch_size": 1,
        "num_layers": model.depth,
        "num_single_layers": model.single_depth,
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "joint_attention_dim": model.context_dim,
        "pooled_projection_dim": model.pooled_dim,
        "in_channels": model.in_channels * PACKED,
        "guidance_embeds": model.guidance_input,
        "axes_dims_rope": list(model.rope_axes),
    }


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
