"""The table of names of a ``WanVAE``, which the layouts of its weights share, and its sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dit.config import call
from dit.interop.mapping import Entry, State
from dit.models import wan_vae
from dit.models.wan_vae import WanVAE
from dit.models.wan_vae_blocks import Stage
from dit.types import UserError


@dataclasses.dataclass(frozen=True)
class Names:
    """What a layout calls the parts of a half.

    ``block(half, i, j, blocks, nested)``: where block ``j`` of level ``i``, in the order of the half, is
    that has ``blocks`` blocks a level; ``resample(half, i, blocks, nested)``: where its change of
    resolution is. ``nested``: whether levels have shortcuts, and are modules of their own. ``parts``:
    from our names of a block's parts to theirs. ``middle``: the first block, the attention, the last
    block. ``quant``: the two 1x1 convolutions at the latents.
    """

    embed: str
    block: Callable[[str, int, int, int, bool], str]
    resample: Callable[[str, int, int, bool], str]
    parts: Mapping[str, str]
    middle: tuple[str, str, str]
    norm: str
    final: str
    quant: tuple[str, str]


def convolution(path: str, name: str, window: tuple[int, ...]) -> Iterator[Entry]:
    """The entries of a convolution."""
    yield Entry((*path.split("/"), "kernel"), (f"{name}.weight",), "conv", window=window)
    yield Entry((*path.split("/"), "bias"), (f"{name}.bias",))


def norm(path: str, name: str, axes: int = 3) -> Iterator[Entry]:
    """The entry of a norm, whose array has so many axes of size one after the channels."""
    yield Entry((*path.split("/"), "scale"), (f"{name}.gamma",), "channels", window=(1,) * axes)


def entries(model: WanVAE, names: Names) -> Iterator[Entry]:
    """The table of the parameters of ``model`` in a layout."""
    halves = {"encoder": model.encoder_stages, "decoder": model.decoder_stages}
    nested = model.encoder_stages[0].shortcut
    for half, stages in halves.items():
        yield from convolution(f"{half}/embed", f"{half}.{names.embed}", (3, 3, 3))
        yield from _middle(f"{half}/middle", half, names)
        for i, stage in enumerate(stages):
            ours, inputs = f"{half}/{stage.name}", stage.inputs
            for j in range(stage.blocks):
                theirs = f"{half}.{names.block(half, i, j, stage.blocks, nested)}"
                yield from _block(f"{ours}/block_{j}", theirs, names, inputs != stage.width)
                inputs = stage.width
            if stage.resample:
                theirs = f"{half}.{names.resample(half, i, stage.blocks, nested)}"
                yield from _resample(ours, theirs, stage)
        yield from norm(f"{half}/norm", f"{half}.{names.norm}")
        yield from convolution(f"{half}/final", f"{half}.{names.final}", (3, 3, 3))
    for ours, theirs in zip(("quant", "post_quant"), names.quant, strict=True):
        yield from convolution(ours, theirs, (1, 1, 1))


def _block(ours: str, theirs: str, names: Names, shortcut: bool) -> Iterator[Entry]:
    for part in ("in", "out"):
        yield from norm(f"{ours}/norm_{part}", f"{theirs}.{names.parts[f'norm_{part}']}")
        conv = names.parts[f"conv_{part}"]
        yield from convolution(f"{ours}/conv_{part}", f"{theirs}.{conv}", (3, 3, 3))
    if shortcut:
        other = names.parts["shortcut"]
        yield from convolution(f"{ours}/shortcut", f"{theirs}.{other}", (1, 1, 1))


def _resample(ours: str, theirs: str, stage: Stage) -> Iterator[Entry]:
    yield from convolution(f"{ours}/space", f"{theirs}.resample.1", (3, 3))
    if stage.temporal:
        yield from convolution(f"{ours}/time/conv", f"{theirs}.time_conv", (3, 1, 1))


def _middle(ours: str, half: str, names: Names) -> Iterator[Entry]:
    first, attention, last = (f"{half}.{name}" for name in names.middle)
    for i, theirs in enumerate((first, last)):
        yield from _block(f"{ours}/block_{i}", theirs, names, False)
    yield from norm(f"{ours}/space/norm", f"{attention}.norm", 2)
    for part, there, inputs in (("qkv", "to_qkv", 1), ("out", "proj", 2)):
        path = (*ours.split("/"), "space", "attention", part)
        weight = (f"{attention}.{there}.weight",)
        yield Entry((*path, "kernel"), weight, "conv", window=(1, 1), inputs=inputs)
        yield Entry((*path, "bias"), (f"{attention}.{there}.bias",))


def describe(
    state: State, names: Names, settings: Mapping[str, Any] | None = None, **how: Any
) -> WanVAE:
    """The autoencoder whose weights these are, by their shapes.

    ``settings``: what ``config.json`` says beside them, which must not contradict them. ``how``:
    keywords of ``build`` on how it is run.
    """
    given = keywords(state, names, settings or {})
    return call(wan_vae.build, "the weights of a WanVAE", **given, **how)


def keywords(state: State, names: Names, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``build`` that the shapes give; UserError for a ``config.json`` against them."""
    nested = (
        f"encoder.{names.block('encoder', 0, 0, 1, True)}.{names.parts['conv_in']}.weight" in state
    )
    inputs = _shape(state, f"encoder.{names.embed}.weight")
    width, pixels = int(inputs[0]), int(inputs[1])
    widths, depth, temporal = _levels(state, names, nested)
    odd = [w for w in widths if w % width]
    if odd:
        raise UserError(f"got a level of {odd[0]} channels; expected a multiple of {width}")
    multipliers = tuple(w // width for w in widths)
    channels = int(_shape(state, f"decoder.{names.embed}.weight")[0])
    outputs = int(_shape(state, f"decoder.{names.final}.weight")[0])
    patch = settings.get("patch_size") or (2 if nested and pixels % 4 == 0 else 1)
    found = {
        "width": width,
        "multipliers": multipliers,
        "decoder_width": channels // multipliers[-1],
        "depth": depth,
        "latent_channels": int(_shape(state, f"decoder.{names.embed}.weight")[1]),
        "temporal": temporal,
        "shortcuts": nested,
        "patch": patch,
        "in_channels": pixels // patch**2,
        "out_channels": outputs // patch**2,
    }
    told = {
        "base_dim": width,
        "dim_mult": multipliers,
        "decoder_base_dim": found["decoder_width"],
        "num_res_blocks": depth,
        "z_dim": found["latent_channels"],
        "temperal_downsample": temporal,
        "is_residual": nested,
        "attn_scales": (),
    }
    for key, value in told.items():
        said = settings.get(key)
        said = tuple(said) if isinstance(said, list) else said
        if said not in (None, value):
            raise UserError(
                f"config.json says {key}={said}, and the weights beside it have {value}: they belong to "
                "different models"
            )
    return found


def sections(state: State, names: Names, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a config for an autoencoder, of clips of five frames of 256x256."""
    given = keywords(state, names, settings)
    channels = given.pop("in_channels")
    model = {k: given[k] for k in sorted(given)}
    return {
        "data": {"name": "noise", "shape": (5, 256, 256, channels)},
        "model": {"name": "wan_vae", **model},
        "objective": {"name": "autoencoder", "lpips": 0.0, "adversarial": 0.0},
    }


def settings(model: WanVAE, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of an autoencoder as diffusers has it, but for the scale of its latents."""
    encoder, decoder = model.encoder_stages, model.decoder_stages
    width, area = encoder[0].inputs, model.patch**2
    multipliers = [stage.width // width for stage in encoder]
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": width,
        "decoder_base_dim": decoder[0].inputs // multipliers[-1],
        "z_dim": model.latent_channels,
        "dim_mult": multipliers,
        "num_res_blocks": encoder[0].blocks,
        "attn_scales": [],
        "temperal_downsample": [stage.temporal for stage in encoder[:-1]],
        "is_residual": encoder[0].shortcut,
        "in_channels": model.in_channels * area,
        "out_channels": model.out_channels * area,
        "patch_size": None if model.patch == 1 else model.patch,
        "scale_factor_temporal": model.stride,
        "scale_factor_spatial": 2**model.halvings,
    }


def _levels(
    state: State, names: Names, nested: bool
) -> tuple[tuple[int, ...], int, tuple[bool, ...]]:
    """The channels of each level of the encoder, its blocks a level, and which halve the frames."""
    conv = names.parts["conv_in"]

    def block(i: int, j: int, blocks: int) -> str:
        return f"encoder.{names.block('encoder', i, j, blocks, nested)}.{conv}.weight"

    depth = 0
    while block(0, depth, 10**6) in state:
        depth += 1
    if not depth:
        raise UserError(f"the weights have no {block(0, 0, 1)!r}: are they a Wan autoencoder's?")
    widths, temporal = [], []
    while block(len(widths), 0, depth) in state:
        level = len(widths)
        widths.append(int(_shape(state, block(level, 0, depth))[0]))
        where = f"encoder.{names.resample('encoder', level, depth, nested)}"
        if f"{where}.resample.1.weight" in state:
            temporal.append(f"{where}.time_conv.weight" in state)
    return tuple(widths), depth, tuple(temporal)


def _shape(state: State, name: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim != 5:
        raise UserError(
            f"the weights lack the convolution {name!r}: they are of no Wan autoencoder"
        )
    return state[name].shape
