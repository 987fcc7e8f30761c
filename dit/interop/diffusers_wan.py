"""Weights of the Wan of Hugging Face's ``diffusers`` (``WanTransformer3DModel``).

Its ``config.json`` tells neither the shift of the times nor the guidance: these are 3 and 5 where
latents have 16 channels (480p), and 5 and 5 where they have 48 (720p).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from dit.interop import described
from dit.interop.mapping import Format
from dit.interop.wan import format_of
from dit.models.layers import Mlp
from dit.models.wan import Wan
from dit.types import Count, Range, Tiny, UserError

NAME = "WanTransformer3DModel"
TIME = "condition_embedder.time_embedder"
TEXT = "condition_embedder.text_embedder"
IMAGE = "condition_embedder.image_embedder"
NAMES = {
    "embed": "patch_embedding",
    "time/in": f"{TIME}.linear_1",
    "time/out": f"{TIME}.linear_2",
    "modulation/linear": "condition_embedder.time_proj",
    "context/linear": f"{TEXT}.linear_1",
    "context_out": f"{TEXT}.linear_2",
    "image/norm_in": f"{IMAGE}.norm1",
    "image/in": f"{IMAGE}.ff.net.0.proj",
    "image/out": f"{IMAGE}.ff.net.2",
    "image/norm_out": f"{IMAGE}.norm2",
    "image/positions": f"{IMAGE}.pos_embed",
    "final/table": "scale_shift_table",
    "final/linear": "proj_out",
    "blocks": "blocks",
}
BLOCK = {
    "table": "scale_shift_table",
    "attention/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention/q_norm": "attn1.norm_q",
    "attention/k_norm": "attn1.norm_k",
    "attention/out": "attn1.to_out.0",
    "norm_cross": "norm2",
    "cross/q": "attn2.to_q",
    "cross/kv": ("attn2.to_k", "attn2.to_v"),
    "cross/kv_beside": ("attn2.add_k_proj", "attn2.add_v_proj"),
    "cross/q_norm": "attn2.norm_q",
    "cross/k_norm": "attn2.norm_k",
    "cross/k_norm_beside": "attn2.norm_added_k",
    "cross/out": "attn2.to_out.0",
    "mlp/in": "ffn.net.0.proj",
    "mlp/out": "ffn.net.2",
}
ALWAYS = {  # settings of theirs that have one value here
    "freq_dim": 256,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
UNUSED = ".attn2.norm_added_q.weight"
MASKS = 4  # known channels before the known latents: one for each frame of a latent
IMAGE_TOKENS = 257  # of CLIP ViT-H/14, its first among them


def build() -> Format:
    """The format, for a Wan like ``size="Wan2.1-T2V-1.3B"``, of any size."""
    sections = described.by_settings(NAME, ALWAYS, sizes)
    more = {"sections": sections, "settings": settings, "stem": "diffusion_pytorch_model"}
    return format_of(NAMES, BLOCK, only=used, **more)


def used(state: Mapping[str, Any]) -> dict[str, Any]:
    """A file without norms of queries for the image, which early files have and nothing reads."""
    return {name: x for name, x in state.items() if not name.endswith(UNUSED)}


def sizes(
    *,
    patch_size: tuple[Count, Count, Count] = (1, 2, 2),
    num_attention_heads: Count = 40,
    attention_head_dim: Annotated[int, Range(6, 2**20)] = 128,
    in_channels: Count = 16,
    out_channels: Count = 16,
    text_dim: Count = 4096,
    ffn_dim: Count = 13824,
    num_layers: Count = 40,
    eps: Tiny = 1e-6,
    image_dim: Count | None = None,
    added_kv_proj_dim: Count | None = None,
    pos_embed_seq_len: Count | None = None,
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; clips are of 5 seconds.

    Channels of the input beyond those of the output are known ones (``Cond.concat``): of a network that
    goes on from pictures a mask and their latents.
    """
    width = num_attention_heads * attention_head_dim
    if in_channels < out_channels or added_kv_proj_dim not in (None, width):
        raise UserError(
            f"config.json says in_channels={in_channels}, out_channels={out_channels}, "
            f"added_kv_proj_dim={added_kv_proj_dim}; expected no fewer in than out, and {width} or none"
        )
    ratio = ffn_dim / width
    if Mlp.hidden("gelu", width, ratio) < ffn_dim:  # by rounding
        ratio = math.nextafter(ratio, math.inf)
    tokens = pos_embed_seq_len or IMAGE_TOKENS
    model = {
        "name": "wan",
        "depth": num_layers,
        "width": width,
        "heads": num_attention_heads,
        "patch": tuple(patch_size),
        "mlp_ratio": ratio,
        "context_dim": text_dim,
        "concat_channels": in_channels - out_channels or None,
        "image_context": None if image_dim is None else (tokens, image_dim),
        "image_positions": pos_embed_seq_len is not None,
        "norm_eps": eps,
        "null": "zero",
    }
    large = out_channels == 48
    shape = (31, 44, 80, 48) if large else (21, 60, 104, out_channels)
    grid = f"shifted:shift={5.0 if large else 3.0}"
    sections = {"model": model, **described.flow(shape, grid=grid, steps=50, guidance=5.0)}
    if in_channels == 2 * out_channels + MASKS:
        task = "in_between" if model["image_positions"] else "image_to_video"
        sections["concat"] = {"name": "masked", "tasks": (task,), "masks": MASKS}
    return sections


def settings(model: Wan, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model; UserError for what that library's cannot be."""
    if model.image_context and not model.image_positions and model.image_context[0] != IMAGE_TOKENS:
        raise UserError(
            f"got image_context={model.image_context}; the config.json of a {NAME} does not tell the "
            f"tokens of its image, which are {IMAGE_TOKENS}"
        )
    tokens, channels = model.image_context or (None, None)
    return {
        "_class_name": NAME,
        **ALWAYS,
        "patch_size": list(model.patch),
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": model.in_channels + (model.concat_channels or 0),
        "out_channels": model.out_channels,
        "text_dim": model.context_dim,
        "ffn_dim": Mlp.hidden("gelu", model.width, model.mlp_ratio),
        "num_layers": model.depth,
        "eps": model.norm_eps,
        "image_dim": channels,
        "added_kv_proj_dim": None if channels is None else model.width,
        "pos_embed_seq_len": tokens if model.image_positions else None,
    }
