"""The table of names of an ``AutoencoderKL``, which the layouts of its weights share, and its sizes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from dit.config import call
from dit.interop.described import Latents
from dit.interop.mapping import Entry, State
from dit.models.autoencoder import AutoencoderKL, make
from dit.models.unet_blocks import Layer
from dit.types import UserError

STATISTICS = {"mean": "bn.running_mean", "variance": "bn.running_var"}  # of FLUX.2's latents
KINDS = {"encoder": "DownEncoderBlock2D", "decoder": "UpDecoderBlock2D"}  # of levels
EACH = ("latents_mean", "latents_std")  # of each channel, in a config.json
COUNTER = "bn.num_batches_tracked"  # beside them


@dataclasses.dataclass(frozen=True)
class Names:
    """What a layout calls the parts of a half.

    ``place(layer, levels)``: where a layer is. ``stage``: what follows ``down`` and ``up`` in the names
    of levels. ``norm``, ``qkv``, ``out``: the parts of ``attention`` in the middle, whose products are
    ``matrices``, or else 1x1 convolutions. ``twins``: what a level calls its residual blocks, and
    attention after them. ``quant``: the whole names of the two 1x1 convolutions at the latents.
    """

    place: Callable[[Layer, int], str]
    stage: str
    attention: str
    twins: tuple[str, str]
    norm: str
    qkv: tuple[str, str, str]
    out: str
    matrices: bool
    last_norm: str
    shortcut: str
    quant: tuple[str, str]

    def attends(self, half: str, layer: Layer, levels: int) -> str:
        """Where the attention of a layer is."""
        if layer.name.startswith("middle"):
            return f"{half}.{self.attention}"
        block, attention = (f".{word}." for word in self.twins)
        return f"{half}.{self.place(layer, levels).replace(block, attention)}"


def convolution(path: str, name: str, size: int = 3) -> Iterator[Entry]:
    """The entries of a convolution."""
    yield Entry((*path.split("/"), "kernel"), (f"{name}.weight",), "conv", window=(size, size))
    yield Entry((*path.split("/"), "bias"), (f"{name}.bias",))


def norm(path: str, name: str) -> Iterator[Entry]:
    """The entries of a norm."""
    yield Entry((*path.split("/"), "scale"), (f"{name}.weight",))
    yield Entry((*path.split("/"), "bias"), (f"{name}.bias",))


def entries(model: AutoencoderKL, names: Names) -> Iterator[Entry]:
    """The table of the parameters of ``model`` in a layout.

    Raises UserError for a model that folds pixels or has shortcuts, which those layouts do not know.
    """
    if model.patch > 1 or model.shortcuts:
        raise UserError(
            f"got an autoencoder with patch={model.patch} and shortcuts={model.shortcuts}; formats of "
            "AutoencoderKL have neither: train one with patch=1 and without shortcuts to write it there"
        )
    halves = {"encoder": model.encoder_layers, "decoder": model.decoder_layers}
    for half, layers in halves.items():
        yield from convolution(f"{half}/embed", f"{half}.conv_in")
        for layer in layers:
            ours, theirs = (
                f"{half}/{layer.name}",
                f"{half}.{names.place(layer, model.halvings + 1)}",
            )
            if layer.kind == "conv":
                yield from convolution(f"{ours}/conv", f"{theirs}.conv")
                continue
            yield from norm(f"{ours}/block/norm_in", f"{theirs}.norm1")
            yield from convolution(f"{ours}/block/conv_in", f"{theirs}.conv1")
            yield from norm(f"{ours}/block/norm_out", f"{theirs}.norm2")
            yield from convolution(f"{ours}/block/conv_out", f"{theirs}.conv2")
            if layer.inputs != layer.outputs:
                yield from convolution(f"{ours}/block/shortcut", f"{theirs}.{names.shortcut}", 1)
            if layer.heads:
                attends = names.attends(half, layer, model.halvings + 1)
                yield from _attention(f"{ours}/space", attends, names)
        yield from norm(f"{half}/norm", f"{half}.{names.last_norm}")
        yield from convolution(f"{half}/final", f"{half}.conv_out")
    for ours, theirs, there in zip(
        ("quant", "post_quant"),
        names.quant,
        (model.quant_conv, model.post_quant_conv),
        strict=True,
    ):
        yield from convolution(ours, theirs, 1) if there else ()


def _attention(ours: str, theirs: str, names: Names) -> Iterator[Entry]:
    yield from norm(f"{ours}/norm", f"{theirs}.{names.norm}")
    parts = {
        "qkv": (tuple(f"{theirs}.{name}" for name in names.qkv), 1),
        "out": ((f"{theirs}.{names.out}",), 2),  # heads and their channels
    }
    kind = {"kind": "linear"} if names.matrices else {"kind": "conv", "window": (1, 1)}
    for part, (there, inputs) in parts.items():
        path = (*ours.split("/"), "attention", part)
        weights = tuple(f"{name}.weight" for name in there)
        yield Entry((*path, "kernel"), weights, inputs=inputs, **kind)
        yield Entry((*path, "bias"), tuple(f"{name}.bias" for name in there))


def only(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without the statistics of the latents, which may lie beside the parameters."""
    return {name: x for name, x in state.items() if name not in {*STATISTICS.values(), COUNTER}}


def describe(
    state: State, names: Names, settings: Mapping[str, Any] | None = None, **how: Any
) -> AutoencoderKL:
    """The autoencoder whose weights these are, by their shapes.

    ``settings``: what ``config.json`` says beside them, which must not contradict them; it alone knows
    the groups of the norms, which are 32 without it. ``how``: keywords of ``make`` on how it is run.
    """
    settings = {} if settings is None else settings
    check_settings(settings)
    halves = {half: _levels(state, names, half) for half in ("encoder", "decoder")}
    widths, depth = halves["encoder"]
    decoder_widths, decoder_depth = halves["decoder"]
    if decoder_depth != depth + 1:
        raise UserError(
            f"the weights have {depth} residual blocks a level in the encoder and {decoder_depth} in "
            f"the decoder; expected {depth + 1} there"
        )
    levels = {half: _attending(state, names, half, len(widths)) for half in halves}
    told = {
        "down_block_types": _kinds("encoder", len(widths), levels["encoder"]),
        "up_block_types": _kinds("decoder", len(widths), levels["decoder"]),
        "block_out_channels": widths,
        "layers_per_block": depth,
        "latent_channels": int(_shape(state, "decoder.conv_in.weight")[1]),
        "in_channels": int(_shape(state, "encoder.conv_in.weight")[1]),
        "out_channels": int(_shape(state, "decoder.conv_out.weight")[0]),
    }
    for key, value in told.items():
        said = settings.get(key, value)
        if (tuple(said) if isinstance(said, list) else said) != value:
            raise UserError(
                f"config.json says {key}={said}, and the weights beside it have {value}: they "
                "belong to different models"
            )
    return call(
        make,
        "config.json of an autoencoder",
        widths=widths,
        decoder_widths=decoder_widths,
        depth=depth,
        latent_channels=told["latent_channels"],
        in_channels=told["in_channels"],
        out_channels=told["out_channels"],
        quant_conv=f"{names.quant[0]}.weight" in state,
        post_quant_conv=f"{names.quant[1]}.weight" in state,
        middle_attention=f"encoder.{names.attention}.{names.norm}.weight" in state,
        attention_levels=levels["encoder"],
        decoder_attention_levels=levels["decoder"],
        norm_groups=settings.get("norm_num_groups", 32),
        **how,
    )


def sections(model: AutoencoderKL, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a config for an autoencoder; UserError for one that no config can name.

    Pictures are ``sample_size`` wide in its ``config.json``, or 256.
    """
    widths, decoder_widths = _widths(model)
    unit = math.gcd(*widths)
    multipliers = tuple(width // unit for width in widths)
    decoder_unit = decoder_widths[0] // multipliers[0]
    if tuple(decoder_unit * m for m in multipliers) != decoder_widths:
        raise UserError(
            f"got an encoder of {widths} channels and a decoder of {decoder_widths}, which are no "
            "multiple of them; a codec reads such files as they are: codec.path=FILE"
        )
    side = settings.get("sample_size", 256)
    side = max(side[0] if isinstance(side, list) else side, 2**model.halvings)
    return {
        "data": {"name": "noise", "shape": (1, side, side, model.in_channels)},
        "model": {
            "name": "autoencoder",
            "width": unit,
            "multipliers": multipliers,
            "decoder_width": decoder_unit,
            "depth": _depth(model),
            "latent_channels": model.latent_channels,
            "out_channels": model.out_channels,
            "quant_conv": model.quant_conv,
            "post_quant_conv": model.post_quant_conv,
            "middle_attention": _in_the_middle(model),
            "attention_levels": attending(model, "encoder"),
            "decoder_attention_levels": attending(model, "decoder"),
            "norm_groups": model.style.groups,
        },
        "objective": {"name": "autoencoder", "lpips": 0.0, "adversarial": 0.0},
    }


def settings(model: AutoencoderKL, shape: tuple[int, ...]) -> dict[str, Any]:
    """The ``config.json`` of an autoencoder as diffusers has it, but for the scale of its latents."""
    widths, decoder_widths = _widths(model)
    levels = len(widths)
    if decoder_widths != widths:
        raise UserError(f"got a decoder of {decoder_widths} channels; expected those of {widths}")
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(widths),
        "down_block_types": list(_kinds("encoder", levels, attending(model, "encoder"))),
        "up_block_types": list(_kinds("decoder", levels, attending(model, "decoder"))),
        "layers_per_block": _depth(model),
        "latent_channels": model.latent_channels,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "norm_num_groups": model.style.groups,
        "use_quant_conv": model.quant_conv,
        "use_post_quant_conv": model.post_quant_conv,
        "mid_block_add_attention": _in_the_middle(model),
        "sample_size": shape[1],
    }


def _widths(model: AutoencoderKL) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The channels of each level of the encoder and of the decoder, the finest first."""
    halves = {"down": model.encoder_layers, "up": model.decoder_layers}
    encoder, decoder = (
        {x.level: x.outputs for x in layers if x.name.startswith(f"{way}_") and x.kind != "conv"}
        for way, layers in halves.items()
    )
    return tuple(encoder[i] for i in sorted(encoder)), tuple(decoder[i] for i in sorted(decoder))


def _depth(model: AutoencoderKL) -> int:
    return sum(x.name.startswith("down_0_") and x.kind != "conv" for x in model.encoder_layers)


def attending(model: AutoencoderKL, half: str) -> tuple[int, ...]:
    """The levels of a half that attend after their residual blocks."""
    layers = model.encoder_layers if half == "encoder" else model.decoder_layers
    return tuple(sorted({x.level for x in layers if x.heads and not x.name.startswith("middle")}))


def _in_the_middle(model: AutoencoderKL) -> bool:
    return any(x.heads for x in model.encoder_layers if x.name.startswith("middle"))


def _kinds(half: str, count: int, attend: Collection[int]) -> tuple[str, ...]:
    """What diffusers calls the levels of a half, in its order."""
    levels = range(count) if half == "encoder" else reversed(range(count))
    return tuple(("Attn" if level in attend else "") + KINDS[half] for level in levels)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError for a ``config.json`` of another kind of autoencoder."""
    kinds = {*settings.get("down_block_types", ()), *settings.get("up_block_types", ())}
    other = sorted(kinds - {f"{way}{kind}" for kind in KINDS.values() for way in ("", "Attn")})
    activation = settings.get("act_fn", "silu")
    if other or activation not in ("silu", "swish"):
        raise UserError(
            f"config.json is of an autoencoder with {', '.join(other) or f'act_fn={activation!r}'}; "
            "expected blocks DownEncoderBlock2D and UpDecoderBlock2D, or with Attn before these, and "
            "act_fn='silu'"
        )


def _levels(state: State, names: Names, half: str) -> tuple[tuple[int, ...], int]:
    """The channels of each level of a half, the finest first, and its residual blocks a level."""
    way = {"encoder": "down", "decoder": "up"}[half]
    pattern = re.compile(rf"{half}\.{way}{names.stage}\.(\d+)\.")
    count = len({found[1] for found in map(pattern.match, state) if found})

    def weight(level: int, i: int) -> str:
        return f"{half}.{names.place(Layer(f'{way}_{level}_{i}', level, 1, 1), count)}.conv1.weight"

    widths = tuple(int(_shape(state, weight(level, 0))[0]) for level in range(count))
    depth = 0
    while count and weight(0, depth) in state:
        depth += 1
    if not depth:
        raise UserError(
            f"the weights have no {half}.{way}{names.stage}: are they an AutoencoderKL's?"
        )
    return widths, depth


def _attending(state: State, names: Names, half: str, count: int) -> tuple[int, ...]:
    """The levels of a half that attend."""
    way = {"encoder": "down", "decoder": "up"}[half]
    first = [Layer(f"{way}_{level}_0", level, 1, 1) for level in range(count)]
    places = [f"{names.attends(half, layer, count)}.{names.norm}.weight" for layer in first]
    return tuple(level for level, place in enumerate(places) if place in state)


def _shape(state: State, name: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim != 4:
        raise UserError(f"the weights lack the convolution {name!r}: they are of no AutoencoderKL")
    return state[name].shape


def statistics(state: Collection[str]) -> bool:
    """Whether a state has statistics of the latents."""
    return set(STATISTICS.values()) <= set(state)


def of_each_channel(
    model: AutoencoderKL, settings: Mapping[str, Any]
) -> dict[str, list[float]] | None:
    """The ``mean`` and ``std`` of each channel of the latents, where ``config.json`` says them.

    UserError for what are not as many numbers, or no deviations.
    """
    found = [settings.get(key) for key in EACH]
    if found == [None, None]:
        return None
    scale = settings.get("scaling_factor") or 1.0
    for key, values in zip(EACH, found, strict=True):
        good = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
        if not good or len(values) != model.latent_channels or not all(map(math.isfinite, values)):
            raise UserError(
                f"the settings say {key}={values!r}; expected {model.latent_channels} numbers"
            )
    mean, std = found
    if min(std) <= 0:
        raise UserError(f"the settings say {EACH[1]}={std!r}; expected positive numbers")
    return {"mean": [float(v) for v in mean], "std": [float(v) / scale for v in std]}


def _read(model: AutoencoderKL, settings: Mapping[str, Any]) -> dict[str, list[float]] | None:
    each = of_each_channel(model, settings)
    if each is not None or not settings.get("scaling_factor"):
        return each
    z, shift = model.latent_channels, settings.get("shift_factor") or 0.0
    return {"mean": [shift] * z, "std": [1 / settings["scaling_factor"]] * z}


def _written(latents: Mapping[str, Any]) -> dict[str, Any]:
    if len({*latents["mean"]}) > 1 or len({*latents["std"]}) > 1:
        return {EACH[0]: latents["mean"], EACH[1]: latents["std"], "scaling_factor": 1.0}
    return {"scaling_factor": 1 / latents["std"][0], "shift_factor": latents["mean"][0] or None}


LATENTS = Latents(_read, _written)
