"""Weights of the U-Net of Hugging Face's ``diffusers`` (``UNet2DConditionModel``): Stable Diffusion's.

Its ``config.json`` tells neither the noise nor what is predicted: these are Stable Diffusion's, with
``eps`` (SD 2.1 for 768 pixels predicts v: ``--config.prediction.name=v``).
"""

from __future__ import annotations

from typing import Any

from dit.interop import described
from dit.interop.mapping import Format
from dit.interop.unet import Names, check, format_of, levels
from dit.models.embeddings import FREQUENCIES
from dit.models.unet import SIZES, UNet
from dit.types import Count, Tiny, UserError

NAME = "UNet2DConditionModel"
PLAIN, READS = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
WHOLE = {
    "embed": "conv_in",
    "time/in": "time_embedding.linear_1",
    "time/out": "time_embedding.linear_2",
    "pooled/in": "add_embedding.linear_1",
    "pooled/out": "add_embedding.linear_2",
    "norm": "conv_norm_out",
    "final": "conv_out",
}
BLOCK = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "modulation": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "shortcut": "conv_shortcut",
}
ALWAYS = {  # settings of theirs that have one value here
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
PIXEL = 8  # of a picture, a side, for one of its latents


def build() -> Format:
    """The format, for a U-Net like ``size="SD-1.5"``, of any size."""
    return format_of(
        Names(WHOLE, BLOCK, places),
        sections=described.by_settings(NAME, ALWAYS, sizes),
        settings=settings,
        stem="diffusion_pytorch_model",
    )


def places(model: UNet) -> dict[str, tuple[str, str]]:
    """Where each layer is."""
    count, _ = levels(model)
    found = {}
    for layer in model.layers:
        way, *rest = layer.name.split("_")
        if way == "middle":
            found[layer.name] = (f"mid_block.resnets.{rest[0]}", "mid_block.attentions.0")
            continue
        at = f"{way}_blocks.{layer.level if way == 'down' else count - 1 - layer.level}"
        block = f"{at}.{way}samplers.0.conv" if layer.kind == "conv" else f"{at}.resnets.{rest[1]}"
        found[layer.name] = (block, f"{at}.attentions.{rest[1]}")
    return found


def sizes(
    *,
    sample_size: Count | tuple[Count, Count] = 64,
    in_channels: Count = 4,
    out_channels: Count = 4,
    down_block_types: tuple[str, ...] = (*(READS[0],) * 3, PLAIN[0]),
    up_block_types: tuple[str, ...] = (PLAIN[1], *(READS[1],) * 3),
    block_out_channels: tuple[Count, ...] = (320, 640, 1280, 1280),
    layers_per_block: Count = 2,
    norm_num_groups: Count = 32,
    norm_eps: Tiny = 1e-5,
    cross_attention_dim: Count = 1280,
    transformer_layers_per_block: Count | tuple[Count, ...] = 1,
    attention_head_dim: Count | tuple[Count, ...] = 8,
    use_linear_projection: bool = False,
    addition_embed_type: str | None = None,
    addition_time_embed_dim: Count | None = None,
    projection_class_embeddings_input_dim: Count | None = None,
) -> dict[str, Any]:
    """The sections of a config that these settings stand for; ``attention_head_dim``: how many heads.

    Channels of the input beyond those of the output are known ones (``Cond.concat``): of a network that
    inpaints a mask and the latents of the masked picture.
    """
    widths, down = tuple(block_out_channels), tuple(down_block_types)
    mirrored = tuple(READS[1] if x == READS[0] else PLAIN[1] for x in reversed(down))
    if set(down) - {READS[0], PLAIN[0]} or tuple(up_block_types) != mirrored:
        raise UserError(
            f"config.json says down_block_types={list(down)}, up_block_types={list(up_block_types)}; "
            f"expected {READS[0]} or {PLAIN[0]} at each level, and the same on the way up"
        )
    odd = [w for w in widths if w % widths[0]]
    if len(widths) != len(down) or odd or in_channels < out_channels:
        raise UserError(
            f"config.json says block_out_channels={list(widths)} for {len(down)} levels, in_channels="
            f"{in_channels}, out_channels={out_channels}; expected one width a level, each a multiple "
            "of the first, and no fewer channels in than out"
        )
    levels_read = tuple(i for i, x in enumerate(down) if x == READS[0])
    model = {
        "name": "unet",
        "width": widths[0],
        "multipliers": tuple(w // widths[0] for w in widths),
        "depth": layers_per_block,
        "attention_levels": levels_read,
        "transformer": transformer_layers_per_block,
        **heads_of(widths, attention_head_dim, (*levels_read, len(widths) - 1)),
        "linear_projection": use_linear_projection,
        "scale_shift": False,
        "resblock_updown": False,
        "context_dim": cross_attention_dim,
        "null": "zero",
        "concat_channels": in_channels - out_channels or None,
        "norm_groups": norm_num_groups,
        "norm_eps": norm_eps,
    }
    if addition_embed_type is not None:
        extra = SIZES * FREQUENCIES
        pooled = (projection_class_embeddings_input_dim or 0) - extra
        if (
            addition_embed_type != "text_time"
            or addition_time_embed_dim != FREQUENCIES
            or pooled < 1
        ):
            raise UserError(
                f"config.json says addition_embed_type={addition_embed_type!r}, addition_time_embed_dim="
                f"{addition_time_embed_dim}, projection_class_embeddings_input_dim="
                f"{projection_class_embeddings_input_dim}; expected 'text_time', {FREQUENCIES} and more "
                f"than {extra}"
            )
        model |= {"pooled_dim": pooled, "pixel_size": PIXEL}
    sides = (sample_size,) * 2 if isinstance(sample_size, int) else tuple(sample_size)
    sections = {"model": model, **latent_diffusion((1, *sides, out_channels))}
    if in_channels == 2 * out_channels + 1:
        tasks = ("inpaint:weight=3", "text_to_video")
        sections["concat"] = {"name": "masked", "tasks": tasks, "marks": "unknown"}
    return sections


def latent_diffusion(shape: tuple[int, ...]) -> dict[str, Any]:
    """Stable Diffusion's process, on stand-ins for latents of this ``shape``."""
    betas = {"betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    grid = "ddpm:spacing=leading,offset=1"
    return {
        "data": {"name": "noise", "shape": shape},
        "path": {"name": "ddpm", **betas},
        "prediction": {"name": "eps"},
        "times": {"name": "uniform", "levels": 1000},
        "samples": {"every": 0, "solver": "ddim", "grid": grid, "steps": 50, "guidance": 7.5},
    }


def heads_of(
    widths: tuple[int, ...], heads: int | tuple[int, ...], used: tuple[int, ...]
) -> dict[str, int]:
    """Our keyword for their heads, one number or one a level, of which only ``used`` ones count."""
    if isinstance(heads, int):
        return {"heads": heads}
    if len(heads) != len(widths):
        raise UserError(
            f"config.json says attention_head_dim={list(heads)} for {len(widths)} levels; expected one "
            "a level"
        )
    if len({heads[i] for i in used}) == 1:
        return {"heads": heads[used[0]]}
    found = {widths[i] / heads[i] for i in used}
    if len(found) > 1:
        raise UserError(
            f"config.json says attention_head_dim={list(heads)} for levels of {list(widths)} channels; "
            "expected equal numbers of heads, or heads of equal size"
        )
    return {"head_size": int(found.pop())}


def settings(model: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of a model; UserError for what that library's cannot be."""
    check(model)
    count, depth = levels(model)
    blocks = [x for x in model.layers if x.kind == "block"]
    last = {x.level: x for x in blocks if x.name.startswith("down")}  # of each level
    widths = [last[i].outputs for i in range(count)]
    middle = next(x for x in blocks if x.name == "middle_0")
    reads = [last[i].transformer > 0 for i in range(count)]
    size = middle.outputs // middle.heads
    sized = any(x.heads != middle.heads for x in blocks if x.heads)  # heads of one size
    heads = [width // size if sized else middle.heads for width in widths]
    transformers = [last[i].transformer or 1 for i in range(count - 1)] + [middle.transformer]
    sides = shape[1] if shape[1] == shape[2] else list(shape[1:3])
    pooled = model.pooled_dim
    if pooled is not None and model.pixel_size != PIXEL:
        raise UserError(
            f"got pixel_size={model.pixel_size}; the config.json of a {NAME} does not tell it, and the "
            f"library's pipeline takes {PIXEL}"
        )
    return {
        "_class_name": NAME,
        **ALWAYS,
        "sample_size": sides,
        "in_channels": model.in_channels + (model.concat_channels or 0),
        "out_channels": model.out_channels,
        "down_block_types": [(PLAIN, READS)[read][0] for read in reads],
        "up_block_types": [(PLAIN, READS)[read][1] for read in reversed(reads)],
        "block_out_channels": widths,
        "layers_per_block": depth,
        "norm_num_groups": model.style.groups,
        "norm_eps": model.style.eps,
        "cross_attention_dim": model.context_dim,
        "transformer_layers_per_block": one_or_all(transformers),
        "attention_head_dim": one_or_all(heads),
        "use_linear_projection": model.style.linear_projection,
        "addition_embed_type": None if pooled is None else "text_time",
        "addition_time_embed_dim": None if pooled is None else FREQUENCIES,
        "projection_class_embeddings_input_dim": (
            None if pooled is None else pooled + SIZES * FREQUENCIES
        ),
    }


def one_or_all(numbers: list[int]) -> int | list[int]:
    """The number of all levels where they have one."""
    return numbers[0] if len(set(numbers)) == 1 else numbers
