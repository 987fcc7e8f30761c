"""Weights of the Z-Image of Hugging Face's ``diffusers`` (``ZImageTransformer2DModel``).

Its rotary pairs are neighbours; the first of an MLP's two input maps is the gated one, as here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dit.interop import described
from dit.interop.mapping import Entry, Format
from dit.interop.mmdit import Table
from dit.models.zimage import ZImage
from dit.types import Count, Positive, Tiny, UserError, Whole

NAME = "ZImageTransformer2DModel"
ALWAYS = {"qk_norm": True, "t_scale": 1000.0, "siglip_feat_dim": None}
STAGES = {"image_refiner": "noise_refiner", "text_refiner": "context_refiner", "blocks": "layers"}
NORMS = {
    "attention/q_norm": "attention.norm_q",
    "attention/k_norm": "attention.norm_k",
    "attention_before": "attention_norm1",
    "attention_after": "attention_norm2",
    "mlp_before": "ffn_norm1",
    "mlp_after": "ffn_norm2",
}


def build() -> Format:
    """The format, for a network like ``size="Z-Image"``, of any size."""
    return Format(
        ZImage,
        entries,
        views=lambda model: table(model).views,
        sections=described.by_settings(NAME, ALWAYS, sizes),
        settings=settings,
        stem="diffusion_pytorch_model",
    )


def sizes(
    *,
    all_patch_size: tuple[Count, ...] = (2,),
    all_f_patch_size: tuple[Count, ...] = (1,),
    in_channels: Count = 16,
    dim: Count = 3840,
    n_layers: Count = 30,
    n_refiner_layers: Whole = 2,
    n_heads: Count = 30,
    n_kv_heads: Count = 30,
    norm_eps: Tiny = 1e-5,
    cap_feat_dim: Count = 2560,
    rope_theta: Positive = 256.0,
    axes_dims: tuple[Whole, ...] = (32, 48, 48),
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; samples are of 1024 pixels.

    Steps and guidance are the defaults of the library's pipeline, whose scale 5 is ours less one.
    """
    if len(all_patch_size) != 1 or len(all_f_patch_size) != 1 or n_kv_heads != n_heads:
        raise UserError(
            f"config.json says all_patch_size={list(all_patch_size)}, all_f_patch_size="
            f"{list(all_f_patch_size)}, n_kv_heads={n_kv_heads}; expected one patch, and as many as "
            f"n_heads={n_heads}, as the published one has"
        )
    model = {
        "name": "zimage",
        "depth": n_layers,
        "refiner_depth": n_refiner_layers,
        "width": dim,
        "heads": n_heads,
        "patch": (all_f_patch_size[0], all_patch_size[0], all_patch_size[0]),
        "context_dim": cap_feat_dim,
        "null": "zero",
        "rope_axes": tuple(axes_dims),
        "rope_theta": float(rope_theta),
        "norm_eps": norm_eps,
    }
    samples = {"grid": "shifted:shift=3.0", "steps": 50, "guidance": 6.0}
    return {"model": model, **described.flow((1, 128, 128, in_channels), **samples)}


def settings(model: ZImage, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model; UserError for what that library's cannot be."""
    check(model)
    return {
        "_class_name": NAME,
        **ALWAYS,
        "all_patch_size": [model.patch[1]],
        "all_f_patch_size": [model.patch[0]],
        "in_channels": model.in_channels,
        "dim": model.width,
        "n_layers": model.depth,
        "n_refiner_layers": model.refiner_depth,
        "n_heads": model.heads,
        "n_kv_heads": model.heads,
        "norm_eps": model.norm_eps,
        "cap_feat_dim": model.context_dim,
        "rope_theta": model.rope_theta,
        "axes_dims": list(model.rope_axes),
        "axes_lens": [1024, 512, 512],
    }


def check(model: ZImage) -> None:
    """Raise UserError for another structure."""
    wrong = {"null": model.null} if model.null != "zero" else {}
    wrong |= {"patch": model.patch} if model.patch[1] != model.patch[2] else {}
    wrong |= {"context_dim": None} if model.context_dim is None else {}
    wrong |= {"out_channels": model.out_channels} if model.out_channels != model.in_channels else {}
    if wrong:
        raise UserError(
            "this format holds Z-Image, with a context, null='zero', a square patch and as many "
            f"channels out as in; got {', '.join(f'{k}={v!r}' for k, v in wrong.items())}"
        )


def entries(model: ZImage, names: Collection[str] = ()) -> list[Entry]:
    """The table's entries."""
    check(model)
    return table(model).entries


def table(model: ZImage) -> Table:
    """The table of names."""
    found, patch = Table(model), f"{model.patch[1]}-{model.patch[0]}"
    for path, name in (
        ("embed", f"all_x_embedder.{patch}"),
        ("time/in", "t_embedder.mlp.0"),
        ("time/out", "t_embedder.mlp.2"),
        ("context/linear", "cap_embedder.1"),
        ("final/modulation/linear", f"all_final_layer.{patch}.adaLN_modulation.1"),
        ("final/linear", f"all_final_layer.{patch}.linear"),
    ):
        found.linear(path, name)
    found.add("context/norm/scale", ["cap_embedder.0"], "weight", None)
    found.entries.append(Entry(("image_fill",), ("x_pad_token",)))
    found.entries.append(Entry(("text_fill",), ("cap_pad_token",)))
    for stage in model.stages:
        for layer in range(stage.depth):
            block(found, stage.name, layer, model.block(stage.name).adaptive)
    return found


def block(found: Table, stage: str, layer: int, adaptive: bool) -> None:
    """Add one block."""
    there = f"{STAGES[stage]}.{layer}"
    if adaptive:
        found.linear(f"{stage}/modulation/linear", f"{there}.adaLN_modulation.0", layer=layer)
    parts = (f"{there}.attention.to_{part}" for part in "qkv")
    found.qkv(f"{stage}/attention/qkv", *parts, layer=layer, bias=False)
    for path, names, inputs in (
        ("attention/out", ["attention.to_out.0"], 2),
        ("mlp/in", ["feed_forward.w1", "feed_forward.w3"], 1),
        ("mlp/out", ["feed_forward.w2"], 1),
    ):
        full = (f"{there}.{name}" for name in names)
        found.linear(f"{stage}/{path}", *full, layer=layer, inputs=inputs, bias=False)
    for path, name in NORMS.items():
        if "/" in path:  # of queries and keys, which turn
            found.norm(f"{stage}/{path}", f"{there}.{name}", layer)
        else:
            found.add(f"{stage}/{path}/scale", [f"{there}.{name}"], "weight", layer)
