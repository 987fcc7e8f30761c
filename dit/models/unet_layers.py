"""The layers of a U-Net as modules, in order, and what they cost."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from dit.models.activations import constrain
from dit.models.multihead import self_macs
from dit.models.unet_blocks import (
    PIXELS,
    Conv,
    Layer,
    ResidualBlock,
    SpaceAttention,
    Style,
    TimeAttention,
    around,
    double,
)
from dit.models.unet_transformer import SpaceTransformer, transformer_macs


class LayerModule(nn.Module):
    """A ``Layer``: a residual block with its attention, or a convolution that resamples."""

    layer: Layer
    style: Style

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        vector: Float[Array, "b _ _ _ e"] | None = None,
        context: Float[Array, "b m k"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b f h2 w2 d"]:
        layer, style = self.layer, self.style
        if layer.kind == "conv":
            stride = 2 if layer.resample == "down" else 1
            kept = around(x, layer) if layer.shortcut else None
            x = double(x) if layer.resample == "up" else x
            pad = (0, 1) if style.corner and stride == 2 else (1, 1)
            given = {"stride": stride, "pad": pad, "name": "conv"}
            conv = Conv(layer.outputs, ("embed", "embed_out"), style.dtype, **given)
            y = conv(x) + kept if layer.shortcut else conv(x)
            return constrain(y, *PIXELS)
        x = ResidualBlock(layer, style, name="block")(x, vector)
        if layer.transformer:
            transform = SpaceTransformer(layer.transformer, layer.heads, style, name="transformer")
            x = transform(x, context, mask)
        elif layer.heads:
            x = SpaceAttention(layer.heads, style, name="space")(x, context, mask)
        if layer.temporal:
            x = TimeAttention(layer.temporal, style, name="along_time")(x)
        return x


def layer_macs(
    layer: Layer,
    style: Style,
    frame: tuple[int, int, int],
    rows: int = 0,
    vector: int = 0,
    context: tuple[int, int] | None = None,
) -> dict[str, int]:
    """Multiply-adds of one layer by part.

    ``frame``: frames, height and width of the data. The condition's vector has ``rows`` rows of
    ``vector`` channels at this layer. ``context``: the number of its tokens and of their channels.
    """
    f, h, w = frame[0], *(side >> layer.level_out for side in frame[1:])
    n, c, d = f * h * w, layer.inputs, layer.outputs
    if layer.kind == "conv":
        return {"conv": n * 9 * c * d}
    parts = {
        "conv": n * 9 * (c * d + d * d) + (n * c * d if c != d else 0),
        "modulation": rows * vector * d * (2 if style.scale_shift else 1),
    }
    if layer.transformer:
        parts |= transformer_macs(layer.transformer, f, h * w, d, context)
    elif layer.heads:
        parts["attention"] = f * self_macs(h * w, d)
        if context is not None:
            m, e = context
            parts["cross"] = 2 * n * d * d + 2 * m * e * d + 2 * n * m * d
    if layer.temporal and f > 1:
        parts["temporal"] = h * w * self_macs(f, d)
    return parts


def plan(
    width: int,
    multipliers: tuple[int, ...],
    depth: int,
    attention_levels: tuple[int, ...],
    temporal_levels: tuple[int, ...],
    heads: Callable[[int], int],
    resblock_updown: bool,
    transformer: tuple[int, ...] = (),
) -> tuple[Layer, ...]:
    """The layers in order. ``heads(channels)`` is the number of attention heads.

    The middle always has attention in space, and along time if any level has. ``transformer``: the
    blocks of each level's transformers, the middle's those of the last; none for attention alone.
    """
    kind = "block" if resblock_updown else "conv"
    layers, kept, channels, last = [], [width], width, len(multipliers) - 1

    def add(name: str, level: int, outputs: int, attend: bool = True, **more) -> int:
        inputs = channels + more.get("skip", 0)
        space = heads(outputs) if attend and (level in attention_levels or "middle" in name) else 0
        along = level in temporal_levels or (temporal_levels and "middle" in name)
        temporal = heads(outputs) if attend and along else 0
        more |= {"transformer": transformer[level]} if space and transformer else {}
        layers.append(Layer(name, level, inputs, outputs, heads=space, temporal=temporal, **more))
        if more.get("keep"):
            kept.append(outputs)
        return outputs

    for level, multiplier in enumerate(multipliers):
        for i in range(depth):
            channels = add(f"down_{level}_{i}", level, width * multiplier, keep=True)
        if level < last:
            resample = {"resample": "down", "kind": kind, "keep": True}
            add(f"down_{level}_halve", level, channels, attend=False, **resample)
    add("middle_0", last, channels)
    add("middle_1", last, channels, attend=False)
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for i in range(depth + 1):
            channels = add(f"up_{level}_{i}", level, width * multiplier, skip=kept.pop())
        if level:
            resample = {"resample": "up", "kind": kind}
            add(f"up_{level}_double", level, channels, attend=False, **resample)
    return tuple(layers)
