"""The U-Net that diffusion used before transformers, for images and clips.

Residual blocks with group norm work at several resolutions, first going down and then up again; each
output on the way down is also an input on the way up (Ronneberger et al. 2015). There is attention at
chosen levels and in the middle, as in DDPM (Ho et al. 2020) and ADM (Dhariwal & Nichol 2021). For clips,
attention inside each frame is followed by attention along time (Ho et al. 2022). Inputs and outputs have
the shapes of ``models/dit.py``. Latent diffusion has transformers in place of attention, which read a
text (Rombach et al. 2022: Stable Diffusion 1 and 2; SDXL). There is one time a sample, a frame or a
pixel. Times of pixels modulate each pixel by its own embedding, and at coarser levels by the mean
embedding of the pixels it stands for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import config
from dit.models import attention as attention_module
from dit.models import condition as condition_module
from dit.models import unet_sizes, unet_transformer
from dit.models.activations import constrain
from dit.models.dit import DTYPES, GUIDANCE_SCALE
from dit.models.embeddings import (
    FREQUENCIES,
    ContextEmbedding,
    LabelEmbedding,
    PooledEmbedding,
    TimeEmbedding,
    sinusoids,
)
from dit.models.layers import wide, zeros
from dit.models.network import Level, Network, Shape
from dit.models.remat import POLICIES, check_remat
from dit.models.unet_blocks import (
    PIXELS,
    Conv,
    GroupNorm,
    Layer,
    Style,
    halve,
)
from dit.models.unet_layers import LayerModule, layer_macs, plan
from dit.types import Cond, Count, Params, Tiny, UserError, Whole

EMBEDDING = 4  # channels of the condition's vector, in widths
SIZES = 6  # numbers that a network with ``pixel_size`` is told


class UNet(Network):
    """A description of the network (hashable, no arrays). Made and checked by ``build``."""

    width: int
    layers: tuple[Layer, ...]
    style: Style
    in_channels: int
    out_channels: int
    num_classes: int | None
    context_dim: int | None
    pooled_dim: int | None
    second_time: bool
    guidance_input: bool
    concat_channels: int | None
    remat: str
    null: str = "learned"
    pixel_size: int | None = None

    @property
    def dtype(self) -> str:
        """The type in which convolutions and products are computed."""
        return self.style.dtype

    @property
    def halvings(self) -> int:
        """How often height and width are halved."""
        return max(layer.level for layer in self.layers)

    @property
    def reads(self) -> bool:
        """Whether transformers read the context as it is given."""
        return any(layer.transformer for layer in self.layers)

    def setup(self):
        channels, dtype = EMBEDDING * self.width, str(wide(self.dtype))
        learned = self.null == "learned"
        waves = {"frequencies": self.width}
        self.time = TimeEmbedding(channels, dtype, **waves)
        if self.num_classes is not None:
            self.label = LabelEmbedding(self.num_classes, channels)
        if self.context_dim is not None:
            width = None if self.reads else channels
            self.context = ContextEmbedding(self.context_dim, width, dtype, False, learned)
        if self.pooled_dim is not None:
            self.pooled = PooledEmbedding(channels, dtype, learned)
        if self.second_time:
            self.r = TimeEmbedding(channels, dtype, silent=True, **waves)
        if self.guidance_input:
            self.guidance = TimeEmbedding(channels, dtype, GUIDANCE_SCALE, silent=True, **waves)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w c_out"]:
        """Raises UserError for shapes that do not fit and for conditions missing or not expected."""
        self.check(x, t, cond)
        vector, context, mask = self.embed_condition(t, cond, x.shape[2:4])
        vectors = [vector]  # of each level
        for _ in range(self.halvings if t.ndim == 4 else 0):
            vectors.append(halve(vectors[-1]))
        h = Conv(self.width, ("patch", "embed"), self.dtype, name="embed")(x)
        if cond.concat is not None:
            axes, silent = ("patch", "embed"), {"kernel_init": zeros, "bias": False}
            h = h + Conv(self.width, axes, self.dtype, name="concat", **silent)(cond.concat)
        h = constrain(h, *PIXELS)
        kept, module = [h], LayerModule
        if self.remat != "none":
            module = nn.remat(LayerModule, policy=POLICIES[self.remat])
        for layer in self.layers:
            if layer.skip:
                h = jnp.concatenate([h, kept.pop()], axis=-1)
            vector = vectors[layer.level_out if len(vectors) > 1 else 0]
            h = module(layer, self.style, name=layer.name)(h, vector, context, mask)
            if layer.keep:
                kept.append(h)
        h = nn.silu(GroupNorm(self.style.groups, self.style.eps, name="norm")(h))
        h = Conv(self.out_channels, ("embed", "patch"), self.dtype, zeros, name="final")(h)
        return h.astype(wide(self.dtype))

    def check(self, x: Array, t: Array, cond: Cond) -> None:
        """Raise UserError for inputs that this network does not take."""
        condition_module.check_data(self, x)
        halvings = self.halvings
        if any(side % 2**halvings for side in x.shape[2:4]):
            raise UserError(
                f"got frames of {x.shape[2]}x{x.shape[3]}; a U-Net of {halvings + 1} levels halves them "
                f"{halvings} times: give sides that {2**halvings} divides, or fewer multipliers"
            )
        if t.shape not in (x.shape[:1], x.shape[:2], x.shape[:4]):
            raise UserError(
                f"got t of shape {t.shape} for x of shape {x.shape}; expected ({x.shape[0]},), or "
                f"{x.shape[:2]} for one noise level a frame, or {x.shape[:4]} for one a pixel"
            )
        condition_module.check(self, t, vars(cond), (*x.shape[:4], self.concat_channels))

    def sized(self, cond: Cond, sides: tuple[int, ...]) -> Cond:
        """``cond``, or with the picture's size behind ``pooled`` and not dropped.

        These are six numbers as sinusoids: the height and width of the picture, where the crop of it
        begins (0, 0), and the size that is aimed at (SDXL: Podell et al. 2023, section 2.2).
        """
        if self.pixel_size is None:
            return cond
        size = [side * self.pixel_size for side in sides]
        waves = sinusoids(jnp.asarray([*size, 0, 0, *size], cond.pooled.dtype)).reshape(1, -1)
        pooled = cond.pooled
        if cond.drop is not None:
            pooled = jnp.where(cond.drop[:, None], 0, pooled)
        waves = jnp.broadcast_to(waves, (len(pooled), waves.size))
        return cond.replace(pooled=jnp.concatenate([pooled, waves], axis=1), drop=None)

    def embed_condition(self, t: Array, cond: Cond, sides: tuple[int, ...]):
        """The vector of times, label and pooled, and the context with its mask, or None.

        The vector is ``b f h w e``, with axes of size 1 where it is the same all along them.
        """
        times, told = t.reshape(t.shape[0], -1), self.sized(cond, sides)
        vector = condition_module.embed_time(self, times, told)
        if cond.label is not None:
            vector = vector + self.label(cond.label[:, None], cond.drop)
        context, mask = None, None
        if cond.context is not None:
            context, mask = self.context(cond.context, cond.context_mask, cond.drop)
        vector = vector.reshape(*t.shape, *[1] * (4 - t.ndim), vector.shape[-1])
        return constrain(vector, *PIXELS), context, mask

    def example(self, shape: Shape) -> tuple[Array, Array, Cond]:
        """Zeros, with what the network is conditioned on; the context is one token long."""
        return condition_module.example(self, shape)

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; the layers' parts are of all layers together."""
        rows, channels = self.times(shape, level), EMBEDDING * self.width
        pixels = 9 * math.prod(shape[:3]) * self.width
        macs = {
            "embed": pixels * self.in_channels,
            "concat": pixels * (self.concat_channels or 0),
            "final": pixels * self.out_channels,
        }
        times = {"time": rows, "r": rows * self.second_time, "guidance": int(self.guidance_input)}
        for name, count in times.items():
            macs[f"{name}/in"] = count * self.width * channels
            macs[f"{name}/out"] = count * channels**2
        if self.pooled_dim is not None:
            inputs = self.pooled_dim + (SIZES * FREQUENCIES if self.pixel_size else 0)
            macs["pooled"] = (inputs + channels) * channels
        context = None
        if self.context_dim is not None:
            context = (context_len, self.context_dim if self.reads else channels)
            macs["context"] = 0 if self.reads else context_len * self.context_dim * channels
        for layer in self.layers:
            vectors = rows >> 2 * layer.level_out if level == "token" else rows
            parts = layer_macs(layer, self.style, shape[:3], vectors, channels, context)
            for part, count in parts.items():
                macs[f"layers/{part}"] = macs.get(f"layers/{part}", 0) + count
        return macs

    def attention_macs(self, shape: Shape) -> int:
        """Every pixel with those of its frame, in all heads together."""
        pairs = [
            shape[0] * (shape[1] * shape[2] >> 2 * layer.level_out) ** 2 * layer.outputs
            for layer in self.layers
            for _ in range(max(layer.transformer, layer.heads > 0))
        ]
        return sum(pairs) // len(pairs)

    def stream(self, shape: Shape) -> int:
        """What leaves each layer, and each block of its transformer."""
        pixels = math.prod(shape[:3])
        return sum(
            (1 + layer.transformer) * layer.outputs * (pixels >> 2 * layer.level_out)
            for layer in self.layers
        )

    def plain(self, unrolled: bool = False) -> UNet:
        """See ``Network``; the layers differ, so only blocks of one transformer are looped over."""
        style = dataclasses.replace(self.style, attention="xla", unroll=unrolled)
        return self.clone(style=style, remat="none")

    def unstack(self, params: Params) -> Params:
        """Each block of a transformer by itself."""
        apart = {}
        for layer in self.layers:
            if layer.transformer:
                own = params[layer.name]
                blocks = unet_transformer.unstack(own["transformer"], layer.transformer)
                apart[layer.name] = {**own, "transformer": blocks}
        return {**params, **apart}


def build(
    *,
    size: str | None = None,
    depth: Count | None = None,
    width: Count | None = None,
    multipliers: tuple[Count, ...] | None = None,
    attention_levels: tuple[Whole, ...] | None = None,
    heads: Count | None = None,
    head_size: Count | None = None,
    temporal: bool | tuple[Whole, ...] = False,
    transformer: Count | tuple[Count, ...] | None = None,
    linear_projection: bool | None = None,
    in_channels: Count,
    out_channels: Count | None = None,
    learn_sigma: bool = False,
    num_classes: Count | None = None,
    context_dim: Count | None = None,
    pooled_dim: Count | None = None,
    null: Literal["learned", "zero"] | None = None,
    pixel_size: Count | None = None,
    second_time: bool = False,
    guidance_input: bool = False,
    concat_channels: Count | None = None,
    scale_shift: bool | None = None,
    resblock_updown: bool | None = None,
    norm_groups: Count | None = None,
    norm_eps: Tiny = 1e-5,
    remat: str = "none",
    unroll: Literal["auto"] | bool | Count = "auto",
    dtype: str = "float32",
    attention: str = "auto",
) -> UNet:
    """A network from a published size (``"ADM-64"``, ``"SD-1.5"``) or from its own numbers, which take
    precedence.

    ``depth``: residual blocks a level on the way down (one more on the way up). ``multipliers``: the
    channels of each level, in ``width``s; each level halves height and width of the one before.
    ``attention_levels``: which levels have attention, counted from 0; the middle always has it. Give
    ``heads``, their number, or ``head_size``, the channels of each. ``temporal``: True for attention
    along time wherever there is attention in space, or the levels that have it. ``transformer``: that
    many blocks of a transformer in place of attention in space, or as many at each level; they read the
    context as it is. ``linear_projection``: to them and back by matrices, or else by 1x1 convolutions.
    ``null``: what a dropped sample is told in place of context and pooled. ``pixel_size``: the network
    is told, behind ``pooled``, how large the picture is, of which a pixel here has so many a side.
    ``learn_sigma`` doubles the output channels. ``pooled_dim``, ``second_time``, ``guidance_input`` and
    ``concat_channels`` are as in ``models.dit``. ``scale_shift``: the condition modulates the second
    norm of a block (else it is added before that norm). ``resblock_updown``: residual blocks resample
    (else convolutions do). ``remat``: a policy of ``models/remat.py``, for each layer; ``unroll``: of a
    transformer's blocks.

    Raises UserError for numbers that do not fit together.
    """
    given = {
        "depth": depth,
        "width": width,
        "multipliers": multipliers,
        "attention_levels": attention_levels,
        "heads": heads,
        "head_size": head_size,
        "scale_shift": scale_shift,
        "resblock_updown": resblock_updown,
        "norm_groups": norm_groups,
        "transformer": transformer,
        "linear_projection": linear_projection,
        "context_dim": context_dim,
        "pooled_dim": pooled_dim,
        "null": null,
        "pixel_size": pixel_size,
    }
    if heads is not None and head_size is not None:
        raise UserError(f"got heads={heads} and head_size={head_size}; give one of them")
    chosen = unet_sizes.DEFAULTS | (unet_sizes.parse(size) if size is not None else {})
    if heads is not None or head_size is not None:
        chosen = chosen | {"heads": None, "head_size": None}
    chosen |= {k: v for k, v in given.items() if v is not None}
    missing = [k for k in ("depth", "width", "multipliers") if k not in chosen]
    if missing:
        raise UserError(f"give a size, such as 'ADM-64', or also: {', '.join(missing)}")
    if dtype not in DTYPES:
        raise UserError(f"got dtype={dtype!r}: {config.suggest(dtype, list(DTYPES))}")
    check_remat(remat)
    attention_module.check(attention)
    width, multipliers = chosen["width"], chosen["multipliers"]
    levels, groups = chosen["attention_levels"], chosen["norm_groups"]
    if not multipliers:
        raise UserError("got no multipliers; give one a level, as (1, 2, 2)")
    if width % groups or width % 2:
        raise UserError(f"got width={width}; expected an even multiple of norm_groups={groups}")
    temporal_levels = temporal
    if isinstance(temporal, bool):
        temporal_levels = (levels or (len(multipliers) - 1,)) if temporal else ()
    for name, found in (("attention_levels", levels), ("temporal", temporal_levels)):
        if any(level >= len(multipliers) for level in found):
            raise UserError(
                f"got {name}={found}; there are {len(multipliers)} levels, counted from 0"
            )

    blocks = chosen["transformer"] or ()
    blocks = (blocks,) * len(multipliers) if isinstance(blocks, int) else tuple(blocks)
    if blocks and len(blocks) != len(multipliers):
        raise UserError(f"got transformer={blocks}; expected one a level, of {len(multipliers)}")
    if not blocks and not chosen["linear_projection"]:
        raise UserError("got linear_projection=False and no transformer; leave it out")
    if chosen["pixel_size"] and (chosen["pooled_dim"] is None or chosen["null"] != "zero"):
        raise UserError(
            f"got pixel_size={chosen['pixel_size']} with pooled_dim={chosen['pooled_dim']} and "
            f"null={chosen['null']!r}; a size is told beside a pooled vector, with null='zero'"
        )

    def heads_of(channels: int) -> int:
        """The number of heads at a level of this many channels."""
        count = chosen["heads"] or channels // chosen["head_size"]
        if (
            count == 0
            or channels % count
            or (chosen["head_size"] or channels // count) * count != channels
        ):
            raise UserError(
                f"got a level of {channels} channels with heads={chosen['heads']}, head_size="
                f"{chosen['head_size']}; heads must divide the channels of every level with attention"
            )
        if temporal_levels and channels // count % 2:
            raise UserError(f"got heads of {channels // count} channels; temporal needs even ones")
        return count

    layers = plan(
        width,
        multipliers,
        chosen["depth"],
        levels,
        temporal_levels,
        heads_of,
        chosen["resblock_updown"],
        blocks,
    )
    options = {"linear_projection": chosen["linear_projection"], "unroll": unroll}
    return UNet(
        width=width,
        layers=layers,
        style=Style(groups, norm_eps, chosen["scale_shift"], dtype, attention, **options),
        in_channels=in_channels,
        out_channels=(out_channels or in_channels) * (2 if learn_sigma else 1),
        num_classes=num_classes,
        context_dim=chosen["context_dim"],
        pooled_dim=chosen["pooled_dim"],
        null=chosen["null"],
        pixel_size=chosen["pixel_size"],
        second_time=second_time,
        guidance_input=guidance_input,
        concat_channels=concat_channels,
        remat=remat,
    )
