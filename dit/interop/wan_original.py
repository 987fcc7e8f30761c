"""Weights of Wan as their authors keep them."""

from __future__ import annotations

from dit.interop import lora
from dit.interop.mapping import Format
from dit.interop.wan import format_of

NAMES = {
    "embed": "patch_embedding",
    "time/in": "time_embedding.0",
    "time/out": "time_embedding.2",
    "modulation/linear": "time_projection.1",
    "context/linear": "text_embedding.0",
    "context_out": "text_embedding.2",
    "image/norm_in": "img_emb.proj.0",
    "image/in": "img_emb.proj.1",
    "image/out": "img_emb.proj.3",
    "image/norm_out": "img_emb.proj.4",
    "image/positions": "img_emb.emb_pos",
    "final/table": "head.modulation",
    "final/linear": "head.head",
    "blocks": "blocks",
}
BLOCK = {
    "table": "modulation",
    "attention/qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attention/q_norm": "self_attn.norm_q",
    "attention/k_norm": "self_attn.norm_k",
    "attention/out": "self_attn.o",
    "norm_cross": "norm3",
    "cross/q": "cross_attn.q",
    "cross/kv": ("cross_attn.k", "cross_attn.v"),
    "cross/kv_beside": ("cross_attn.k_img", "cross_attn.v_img"),
    "cross/q_norm": "cross_attn.norm_q",
    "cross/k_norm": "cross_attn.norm_k",
    "cross/k_norm_beside": "cross_attn.norm_k_img",
    "cross/out": "cross_attn.o",
    "mlp/in": "ffn.0",
    "mlp/out": "ffn.2",
}


def build() -> Format:
    """The format, for a Wan like ``size="Wan2.1-T2V-1.3B"``, of any size."""
    return format_of(NAMES, BLOCK, part=lora.ORIGINAL)
