"""The ``config.json`` of tiny networks of Wan and LTX-Video, as diffusers writes them."""

SETTINGS = {
    "t2v": {
        "_class_name": "WanTransformer3DModel",
        **{"patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 12},
        **{"in_channels": 4, "out_channels": 4, "text_dim": 7, "freq_dim": 256, "ffn_dim": 49},
        **{"num_layers": 2, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"},
        **{"eps": 1e-6, "image_dim": None, "added_kv_proj_dim": None, "pos_embed_seq_len": None},
    },
}
SETTINGS["i2v"] = SETTINGS["t2v"] | {"in_channels": 9, "image_dim": 6, "added_kv_proj_dim": 24}
SETTINGS["flf2v"] = SETTINGS["i2v"] | {"pos_embed_seq_len": 8}
SETTINGS["ltx"] = {
    "_class_name": "LTXVideoTransformer3DModel",
    **{"patch_size": 1, "patch_size_t": 1, "num_attention_heads": 2, "attention_head_dim": 8},
    **{"in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "caption_channels": 7},
    **{"num_layers": 2, "qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False},
    **{"norm_eps": 1e-6, "activation_fn": "gelu-approximate"},
    **{"attention_bias": True, "attention_out_bias": True},
}


def format_of(kind):
    """The name of its format."""
    return "diffusers_ltx" if kind == "ltx" else "diffusers_wan"
