"""The image tower of CLIP (Radford et al. 2021), by default ViT-L/14: 768 projected features.

Pictures are scaled to a square by Pillow's bicubic (CLIP's own crops the middle of oblong ones after
it), divided by 255 and normalised by CLIP's mean and deviation. Weights and sizes are those of a
directory in the layout of transformers, of a whole CLIP or its vision part; the text tower of the same
directory is ``dit.text.pretrained.clip``.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dit import config
from dit.evaluation.features import Features, vit, weights
from dit.evaluation.features.resize import scaled
from dit.interop.folder import read_json
from dit.interop.mapping import Entry
from dit.text.pretrained.layers import check_activation
from dit.types import Count, Params, Tiny, UserError

USUAL = "clip-vit-large-patch14"
SOURCE = "https://huggingface.co/openai/clip-vit-large-patch14 (config.json and model.safetensors)"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
ELSEWHERE = ("text_model.", "text_projection.", "logit_scale")
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
LARGE |= {"num_attention_heads": 16, "patch_size": 14, "projection_dim": 768}


def build(*, path: str | None = None) -> Features:
    """The tower in the directory ``path``, or in one of the usual name; UserError without."""
    state, origin = weights.read("clip", path, (USUAL,), SOURCE)
    folder = pathlib.Path(path or "").expanduser()
    settings = read_json(folder / "config.json") if path and folder.is_dir() else LARGE
    model = network(settings)
    params = params_of(state, model)

    def apply(params: Params, x: Float[Array, "n s s 3"]) -> Float[Array, "n d"]:
        return model.apply({"params": params}, normalised(x))

    side = model.patch * model.grid
    size = {768: "b", 1024: "l", 1280: "h"}.get(model.width, f"{model.width}_")
    name = f"clip_{size}{model.patch}"
    how = {"resize": "pil_bicubic", "port": "transformers"}
    return Features(name, params, apply, side=side, origin=origin, **how)


def normalised(x: Float[Array, "n s s 3"]) -> Float[Array, "n s s 3"]:
    """Pictures of 0 to 255 as the tower takes them."""
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
    return (x / 255 - mean) / std


def states(path: str, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n t d"]:
    """What the tower in the directory ``path`` makes of pictures: all tokens, before its last block.

    That is what Wan 2.1's image-to-video networks are told of an image (the class token among them).
    """
    folder = pathlib.Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no config.json in {path!r}; expected the directory of a CLIP, as transformers saves it"
        )
    model = network(read_json(folder / "config.json")).clone(before=1)
    state, _ = weights.read("clip", path, (USUAL,), SOURCE)
    if "visual_projection.weight" not in state:
        model = model.clone(projection=None)
    params, side = params_of(state, model), model.patch * model.grid
    seen = [scaled(jnp.asarray(x[None], jnp.float32), side, "pil_bicubic") for x in pictures]
    return np.asarray(
        jax.jit(lambda p, x: model.apply({"params": p}, normalised(x)))(
            params, jnp.concatenate(seen)
        )
    )


def network(settings: Mapping[str, Any]) -> vit.Vit:
    """The transformer with these settings, of ``config.json``; UserError for others."""
    projection = settings.get("projection_dim")
    vision = settings.get("vision_config", settings)
    known = config.keywords(sizes)
    given = {k: vision[k] for k in known if vision.get(k) is not None}
    given["projection_dim"] = projection or vision.get("projection_dim", 512)
    return config.call(sizes, "config.json of clip", **given)


def sizes(
    *,
    hidden_size: Count = 768,
    intermediate_size: Count = 3072,
    num_hidden_layers: Count = 12,
    num_attention_heads: Count = 12,
    image_size: Count = 224,
    patch_size: Count = 32,
    hidden_act: str = "quick_gelu",
    layer_norm_eps: Tiny = 1e-5,
    projection_dim: Count,
) -> vit.Vit:
    """The transformer, from the fields of ``config.json``."""
    return vit.Vit(
        patch_size,
        image_size // patch_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size,
        check_activation(hidden_act),
        layer_norm_eps,
        patch_bias=False,
        first_norm=True,
        projection=projection_dim,
    )


def params_of(state: Mapping[str, Any], model: vit.Vit) -> Params:
    """The parameters of a whole CLIP's state, or of its vision part's; UserError for others."""
    state = {
        name: np.asarray(x)
        for name, x in state.items()
        if not name.startswith(ELSEWHERE) and not name.endswith("position_ids")
    }
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in state) else ""
    return vit.read(model, state, list(_entries(model, prefix)))


def _entries(model: vit.Vit, prefix: str) -> Iterator[Entry]:
    embeddings = f"{prefix}embeddings"
    yield Entry(("class",), (f"{embeddings}.class_embedding",))
    yield Entry(("positions",), (f"{embeddings}.position_embedding.weight",))
    yield Entry(("patches", "kernel"), (f"{embeddings}.patch_embedding.weight",), "conv")
    yield from vit.norm("first_norm", f"{prefix}pre_layrnorm")
    qkv = tuple(f"self_attn.{part}_proj" for part in "qkv")
    names = {f"norm_{i}": f"layer_norm{i}" for i in (1, 2)} | {
        "attention/out": "self_attn.out_proj"
    }
    names |= {"mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
    for i in range(model.depth):
        yield from vit.block(i, f"{prefix}encoder.layers.{i}", qkv, names)
    yield from vit.norm("norm", f"{prefix}post_layernorm")
    if model.projection:
        yield Entry(("project", "kernel"), ("visual_projection.weight",), "linear", inputs=1)
