"""Weights of the LTX-Video of Hugging Face's ``diffusers`` (``LTXVideoTransformer3DModel``).

Its ``config.json`` tells neither how positions are counted nor how the network is sampled. A network of
48 layers (0.9.7, 13B) has positions whose first latent is one frame; others are taken for 0.9 and 0.9.1,
which have not: give ``--config.model.rope=span_causal`` for 2B networks of 0.9.5 and later.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from dit.interop import described
from dit.interop.mapping import Format
from dit.interop.wan import demand, format_of
from dit.models.wan import Wan
from dit.types import Count, Range, UserError

NAME = "LTXVideoTransformer3DModel"
NAMES = {
    "embed": "proj_in",
    "time/in": "time_embed.emb.timestep_embedder.linear_1",
    "time/out": "time_embed.emb.timestep_embedder.linear_2",
    "modulation/linear": "time_embed.linear",
    "context/linear": "caption_projection.linear_1",
    "context_out": "caption_projection.linear_2",
    "final/table": "scale_shift_table",
    "final/linear": "proj_out",
    "blocks": "transformer_blocks",
}
BLOCK = {
    "table": "scale_shift_table",
    "attention/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention/q_norm": "attn1.norm_q",
    "attention/k_norm": "attn1.norm_k",
    "attention/out": "attn1.to_out.0",
    "cross/q": "attn2.to_q",
    "cross/kv": ("attn2.to_k", "attn2.to_v"),
    "cross/q_norm": "attn2.norm_q",
    "cross/k_norm": "attn2.norm_k",
    "cross/out": "attn2.to_out.0",
    "mlp/in": "ff.net.0.proj",
    "mlp/out": "ff.net.2",
}
ALWAYS = {  # settings of theirs that have one value here
    "patch_size": 1,
    "patch_size_t": 1,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "attention_bias": True,
    "attention_out_bias": True,
}
LARGE = 48  # layers of the network whose first latent is one frame
SHAPE = (16, 16, 22, 128)  # of 121 frames of 512 x 704 pixels
TERMINAL = 0.1


def build() -> Format:
    """The format, for a Wan like ``size="LTX-Video-0.9-2B"``, of any size."""
    sections = described.by_settings(NAME, ALWAYS, sizes)
    more = {"sections": sections, "settings": settings, "stem": "diffusion_pytorch_model"}
    return format_of(NAMES, BLOCK, check, matrices=True, **more)


def check(model: Wan) -> None:
    """Raise UserError for another structure than that of LTX-Video."""
    fields = {"norm": "rms", "cross_norm": False, "norm_eps": 1e-6, "qk_norm_eps": 1e-5}
    fields |= {"mlp_ratio": 4.0, "patch": (1, 1, 1)}
    if model.rope == "axes":
        fields["rope"] = "span"
    demand(model, "an LTX-Video, a Wan that takes context", fields)


def mu(tokens: int) -> float:
    """The logarithm of the shift for so many tokens: 0.95 for 1024 and 2.05 for 4096."""
    return 0.95 + (2.05 - 0.95) * (tokens - 1024) / (4096 - 1024)


def sizes(
    *,
    in_channels: Count = 128,
    out_channels: Count = 128,
    num_attention_heads: Count = 32,
    attention_head_dim: Annotated[int, Range(6, 2**20)] = 64,
    cross_attention_dim: Count = 2048,
    num_layers: Count = 28,
    caption_channels: Count = 4096,
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; clips are of 5 seconds."""
    width = num_attention_heads * attention_head_dim
    if out_channels != in_channels or cross_attention_dim != width:
        raise UserError(
            f"config.json says in_channels={in_channels}, out_channels={out_channels}, "
            f"cross_attention_dim={cross_attention_dim}; expected as many out as in, and {width}"
        )
    model = {
        "name": "wan",
        "depth": num_layers,
        "width": width,
        "heads": num_attention_heads,
        "patch": 1,
        "context_dim": caption_channels,
        "null": "zero",
        "norm": "rms",
        "cross_norm": False,
        "qk_norm_eps": 1e-5,
        "rope": "span_causal" if num_layers == LARGE else "span",
    }
    shape = (*SHAPE[:3], in_channels)
    grid = f"shifted:shift={math.exp(mu(math.prod(SHAPE[:3])))},terminal={TERMINAL}"
    return {"model": model, **described.flow(shape, grid=grid, steps=50, guidance=3.0)}


def settings(model: Wan, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model."""
    return {
        "_class_name": NAME,
        **ALWAYS,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "cross_attention_dim": model.width,
        "num_layers": model.depth,
        "caption_channels": model.context_dim,
    }
