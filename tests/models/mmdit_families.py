"""Tiny networks of diffusers of all families of MMDiT, with random weights, and ours like them."""

import functools

import numpy as np
import pytest

from dit import config

SHAPE = (1, 6, 10, 4)  # f h w c: an odd number of patches
BATCH, LENGTH = 2, 5


def sd3(diffusers, dual=()):
    """Its own arguments, and how it is called with ours."""
    made = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=7,
        caption_projection_dim=24,
        pooled_projection_dim=5,
        pos_embed_max_size=12,
        dual_attention_layers=dual,
        qk_norm="rms_norm" if dual else None,
    )

    def call(x, t, context, pooled):
        return made(x, context, pooled, 1000 * t).sample

    return made, call


def packed(x):
    """``b c h w`` to tokens whose channels are ``(c, 2, 2)``, and their places ``(0, y, x)``."""
    import torch

    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    y = torch.cartesian_prod(torch.zeros(1), torch.arange(h // 2.0), torch.arange(w // 2.0))
    return x.reshape(b, h * w // 4, 4 * c), y


def unpacked(x, h, w):
    b, _, c = x.shape
    x = x.reshape(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, c // 4, h, w)


def flux(diffusers):
    import torch

    made = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=7,
        pooled_projection_dim=5,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )

    def call(x, t, context, pooled, guidance):
        tokens, place = packed(x)
        none = torch.zeros(context.shape[1], 3)
        out = made(tokens, context, pooled, t, place, none, guidance).sample
        return unpacked(out, *x.shape[2:])

    return made, call


def flux2(diffusers):
    import torch

    made = diffusers.Flux2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=7,
        axes_dims_rope=(2, 2, 2, 2),
    )

    def call(x, t, context, guidance):
        one, zero = torch.arange, torch.zeros(1)
        place = torch.cartesian_prod(zero, *(one(float(n)) for n in x.shape[2:]), zero)
        text = torch.cartesian_prod(zero, zero, zero, one(float(context.shape[1])))
        tokens = x.flatten(2).transpose(1, 2)
        out = made(tokens, context, t, place, text, guidance).sample
        return out.transpose(1, 2).reshape(x.shape)

    return made, call


def qwen(diffusers):
    made = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=7,
        axes_dims_rope=(2, 2, 4),
    )

    def call(x, t, context, context_mask):
        h, w = x.shape[2:]
        out = made(packed(x)[0], context, context_mask, t, [(1, h // 2, w // 2)]).sample
        return unpacked(out, h, w)

    return made, call


FAMILIES = {
    "sd3": (
        sd3,
        "diffusers_sd3",
        {"size": "SD3-medium", "depth": 3, "position_table": (12, 8), "time_scale": 1000.0},
        ("context", "pooled"),
    ),
    "sd3.5": (
        functools.partial(sd3, dual=(0,)),
        "diffusers_sd3",
        {"size": "SD3.5-medium", "depth": 3, "dual_depth": 1, "position_table": (12, 8)}
        | {"time_scale": 1000.0},
        ("context", "pooled"),
    ),
    "flux.1": (
        flux,
        "diffusers_flux",
        {"size": "FLUX.1-dev", "depth": 2, "single_depth": 2, "rope_axes": (2, 2, 4)}
        | {"time_scale": 1000.0},
        ("context", "pooled", "guidance"),
    ),
    "flux.2": (
        flux2,
        "diffusers_flux2",
        {"size": "FLUX.2-dev", "depth": 2, "single_depth": 2, "rope_axes": (2, 2, 2, 2)}
        | {"time_scale": 1000.0},
        ("context", "guidance"),
    ),
    "qwen-image": (
        qwen,
        "diffusers_qwen_image",
        {"size": "Qwen-Image", "depth": 2, "rope_axes": (2, 2, 4), "time_scale": 1000.0},
        ("context", "context_mask"),
    ),
}
TINY = {"width": 24, "heads": 3, "in_channels": 4}
DIMS = {"context_dim": 7, "pooled_dim": 5}


@functools.cache
def family(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    make, format, options, takes = FAMILIES[name]
    torch.manual_seed(0)
    other, call = make(diffusers)
    for key, p in other.named_parameters():  # all of them: zeros would hide what follows
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in key and p.ndim == 1 else 0)
    dims = {k: v for k, v in DIMS.items() if k.removesuffix("_dim") in takes}
    model = config.resolve("models", "mmdit", **{**options, **TINY, **dims})
    layout = config.resolve("interop", format)
    state = {k: v.detach().numpy() for k, v in other.state_dict().items()}
    return other, call, model, layout, state


def given(name):
    draw = np.random.default_rng(0)
    takes = FAMILIES[name][3]
    arrays = {
        "x": draw.standard_normal((BATCH, *SHAPE)),
        "t": np.array([0.013, 0.125]),  # of 1000 t the sinusoids differ by the rounding of it
        "context": draw.standard_normal((BATCH, LENGTH, 7)),
        "pooled": draw.standard_normal((BATCH, 5)),
        "guidance": np.array([1.0, 3.5]) / 1000,
        "context_mask": np.arange(LENGTH) < np.array([[3], [5]]),
    }
    arrays = {k: v if v.dtype == bool else v.astype(np.float32) for k, v in arrays.items()}
    return {k: v for k, v in arrays.items() if k in ("x", "t", *takes)}
