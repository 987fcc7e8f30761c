"""MMDiT: image and text as two streams that attend to each other (SD3, FLUX, Qwen-Image).

patchify -> linear (+ positions), text -> linear; double blocks, each stream with weights of its own;
then, in FLUX, single blocks over both in one row; norm, linear -> unpatchify, of the image alone.
Time, pooled text, guidance and the rest of ``Cond`` are summed into the vector that modulates the
blocks (Esser et al. 2024, sec. 4). ``x``: ``b f h w c``; ``t``: a prefix of x, as in ``models/dit.py``;
where the image has several times, the text has the mean of their embeddings.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dit import config
from dit.models import attention as attention_module
from dit.models import condition as condition_module
from dit.models import mmdit_positions as layouts
from dit.models import mmdit_sizes as sizes
from dit.models import patchify as patches
from dit.models import positions as position_module
from dit.models import stack
from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.condition import Condition
from dit.models.dit import DTYPES, GUIDANCE_SCALE, Final
from dit.models.embeddings import (
    FREQUENCIES,
    ContextEmbedding,
    LabelEmbedding,
    PooledEmbedding,
    TimeEmbedding,
)
from dit.models.layers import Linear, Modulation, wide, zeros
from dit.models.mmdit_blocks import ORDER, ROW, Angles, DoubleBlock, Joint, SingleBlock, Style
from dit.models.network import Level, Shape
from dit.models.remat import check_remat
from dit.models.stack import Stage
from dit.models.transformer import Transformer
from dit.types import Cond, Count, Positive, Tiny, UserError, Whole


class MMDiT(Transformer):
    """A description of the model (hashable, no arrays). Made and checked by ``build``."""

    once: ClassVar[tuple[str, ...]] = (
        *Transformer.once,
        *(f"modulation_{name}" for name in (*ORDER, ROW)),
    )

    depth: int
    dual_depth: int
    single_depth: int
    width: int
    heads: int
    patch: patches.Patch
    in_channels: int
    out_channels: int
    num_classes: int | None
    context_dim: int | None
    context_norm: bool
    context_ends: bool
    pooled_dim: int | None
    second_time: bool
    guidance_input: bool
    concat_channels: int | None
    null: str
    mlp: str
    mlp_ratio: float
    qk_norm: bool
    bias: bool
    shared_modulation: bool
    positions: str
    position_table: tuple[int, int] | None
    rope_axes: tuple[int, ...]
    rope_theta: float
    time_scale: float
    norm_eps: float
    remat: str
    unroll: str | int | bool
    dtype: str
    attention: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the streams, in the order of a row of tokens."""
        return ORDER if self.context_dim is not None else ORDER[1:]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Double blocks with a second attention, double blocks, the text's last one, single blocks."""
        last = int(self.context_ends)
        stages = (
            Stage("dual", self.dual_depth),
            Stage("blocks", self.depth - self.dual_depth - last),
            Stage("last", last),
            Stage("single", self.single_depth, merge=self.names),
        )
        return tuple(stage for stage in stages if stage.depth)

    @property
    def style(self) -> Style:
        """What the blocks have in common."""
        return Style(
            width=self.width,
            heads=self.heads,
            mlp=self.mlp,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_norm,
            bias=self.bias,
            shared=self.shared_modulation,
            eps=self.norm_eps,
            dtype=self.dtype,
            kernel=self.attention,
        )

    @nn.nowrap
    def block(self, stage: str) -> nn.Module:
        """A block of a stage, a description by itself."""
        if stage == "single":
            return SingleBlock(self.style, parent=None)
        return DoubleBlock(self.style, dual=stage == "dual", ends=stage == "last", parent=None)

    def setup(self):
        d, wide_type, bias = self.width, str(wide(self.dtype)), {"bias": self.bias}
        for stage in self.stages:
            setattr(self, stage.name, self.block(stage.name))
        self.embed = Linear((d,), ("patch", "embed"), self.dtype, **bias)
        self.time = TimeEmbedding(d, wide_type, self.time_scale, **bias)
        learned = self.null == "learned"
        if self.num_classes is not None:
            self.label = LabelEmbedding(self.num_classes, d)
        if self.context_dim is not None:
            options = {"learned": learned, "norm": self.context_norm, **bias}
            self.context = ContextEmbedding(self.context_dim, d, self.dtype, False, **options)
        if self.pooled_dim is not None:
            self.pooled = PooledEmbedding(d, wide_type, learned)
        if self.second_time:
            self.r = TimeEmbedding(d, wide_type, self.time_scale, silent=True, **bias)
        if self.guidance_input:
            self.guidance = TimeEmbedding(d, wide_type, GUIDANCE_SCALE, silent=True, **bias)
        if self.concat_channels is not None:
            self.concat = Linear((d,), ("patch", "embed"), self.dtype, zeros, bias=False)
        if self.shared_modulation:
            counts = dict.fromkeys(self.names, 6) | ({ROW: 3} if self.single_depth else {})
            self.modulation = {n: Modulation(k, self.dtype, self.bias) for n, k in counts.items()}
        pixels = math.prod(self.patch) * self.out_channels
        self.final = Final(pixels, True, "layer", self.dtype, self.norm_eps, **bias)

    def __call__(
        self, x: Float[Array, "..."], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w c_out"]:
        """Raises UserError for shapes that do not fit and for conditions missing or not expected."""
        condition_module.check_data(self, x)
        grid = patches.grid(x.shape[1:4], self.patch)
        condition_module.check_time(t, x)
        condition_module.check(self, t, vars(cond), (*x.shape[:4], self.concat_channels))
        image = self.embed(patches.patchify(x, self.patch))
        if cond.concat is not None:
            image = image + self.concat(patches.patchify(cond.concat, self.patch))
        position = patches.positions(x.shape[1:4], self.patch)
        if "sincos" in self.positions:
            place = position
            if self.position_table is not None:
                place = layouts.cropped(position, grid, self.position_table)
            image = image + position_module.sincos(place, self.width)
        streams, mask = {"image": image}, None
        if cond.context is not None:
            streams["text"], mask = self.context(cond.context, cond.context_mask, cond.drop)
        streams = {
            name: constrain(s.astype(self.dtype), "act_batch", "act_length", "act_embed")
            for name, s in streams.items()
        }
        lengths = {name: streams[name].shape[1] for name in self.names}
        rotary = self.angles(position, grid, lengths) if "rope" in self.positions else None
        joint = self.told_by(self.times_of(x, t, cond), lengths, mask, rotary)
        image = stack.run(self, self.stages, streams, joint)["image"]
        out = self.final(image, Condition(vector=joint.vectors["image"]))
        return patches.unpatchify(out, self.patch, x.shape[1:4])

    def angles(
        self, position: Array, grid: tuple[int, int, int], lengths: dict[str, int]
    ) -> Angles:
        """Rotary angles of the streams' tokens, and of the row of both."""
        places = layouts.places(self.positions, position, grid, lengths.get("text", 0))
        place = dict(zip(("image", "text"), places, strict=True))
        place[ROW] = jnp.concatenate([place[name] for name in self.names], axis=1)
        return {
            name: position_module.rotary(place[name], self.rope_axes, self.rope_theta)
            for name in (*self.names, ROW)
        }

    def told_by(
        self,
        time: Float[Array, "b k d"],
        lengths: dict[str, int],
        mask: Bool[Array, "b m"] | None,
        rotary: Angles | None,
    ) -> Joint:
        """What the blocks are told: the text has the mean of the image's times."""
        vectors, index = {"image": time, ROW: time}, None
        if "text" in lengths:
            vectors["text"] = time
            if time.shape[1] > 1:
                vectors["text"] = time.mean(1, keepdims=True)
                vectors[ROW] = jnp.concatenate([vectors["text"], time], axis=1)
                which = jnp.arange(lengths["image"]) // (lengths["image"] // time.shape[1])
                which = jnp.pad(1 + which, (lengths["text"], 0))
                index = jnp.broadcast_to(which, (len(time), len(which)))
        parts = None
        if self.shared_modulation:
            parts = {name: modulate(vectors[name]) for name, modulate in self.modulation.items()}
        visible = None
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, lengths["image"])), constant_values=True)
            visible = Visibility(k_valid=mask)
        return Joint(vectors, index, parts, visible, rotary)

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; the blocks' parts are of all layers of a stage together.

        A network that takes a context has at least one token of it. What the last double block makes
        of the text is counted even if nothing reads it (Qwen-Image), though a compiler leaves it out.
        """
        d, n, pixels = self.width, self.tokens(shape), math.prod(self.patch)
        times = self.times(shape, level)
        rows = times // self.patch[0] if level == "frame" else times
        lengths, counts = {"image": n}, {"image": rows, ROW: rows}
        if self.context_dim is not None:
            lengths |= {"text": max(context_len, 1)}
            counts |= {"text": 1, ROW: rows + (rows > 1)}
        macs = {
            "embed": n * pixels * self.in_channels * d,
            "concat": n * pixels * (self.concat_channels or 0) * d,
            "context": lengths.get("text", 0) * (self.context_dim or 0) * d,
            "pooled": 0 if self.pooled_dim is None else self.pooled_dim * d + d * d,
            "final": n * d * pixels * self.out_channels + rows * d * 2 * d,
        }
        numbers = {"time": times, "r": times * self.second_time, "guidance": self.guidance_input}
        for name, count in numbers.items():
            macs |= {f"{name}/in": count * FREQUENCIES * d, f"{name}/out": count * d * d}
        if self.shared_modulation:
            parts = dict.fromkeys(self.names, 6) | ({ROW: 3} if self.single_depth else {})
            macs |= {f"modulation/{k}": counts[k] * d * v * d for k, v in parts.items()}
        for stage in self.stages:
            block = self.block(stage.name)
            if stage.merge:
                parts = block.macs(sum(lengths.values()), counts[ROW])
            else:
                parts = block.macs(lengths, counts)
            macs |= {f"{stage.name}/{part}": stage.depth * m for part, m in parts.items()}
        return macs

    def stream(self, shape: Shape) -> int:
        """The image's tokens, as they enter each block."""
        return self.tokens(shape) * self.width * (self.depth + self.single_depth)


def build(
    *,
    size: str | None = None,
    depth: Count | None = None,
    dual_depth: Whole | None = None,
    single_depth: Whole | None = None,
    width: Count | None = None,
    heads: Count | None = None,
    patch: Count | tuple[Count, Count, Count] | None = None,
    in_channels: Count,
    out_channels: Count | None = None,
    learn_sigma: bool = False,
    num_classes: Count | None = None,
    context_dim: Count | None = None,
    context_norm: bool | None = None,
    context_ends: bool | None = None,
    pooled_dim: Count | None = None,
    second_time: bool = False,
    guidance_input: bool | None = None,
    concat_channels: Count | None = None,
    null: Literal["learned", "zero"] | None = None,
    mlp: Literal["gelu", "swiglu"] | None = None,
    mlp_ratio: Positive | None = None,
    qk_norm: bool | None = None,
    bias: bool | None = None,
    shared_modulation: bool | None = None,
    positions: str | None = None,
    position_table: tuple[Count, Count] | None = None,
    rope_axes: tuple[Whole, ...] | None = None,
    rope_theta: Positive | None = None,
    time_scale: Positive = 1.0,
    norm_eps: Tiny = 1e-6,
    remat: str = "none",
    unroll: Literal["auto"] | bool | Count = "auto",
    dtype: str = "float32",
    attention: str = "auto",
) -> MMDiT:
    """A published network (``size``, of ``models/mmdit_sizes.py``), or one of its own numbers, which
    take precedence.

    ``depth``: double blocks, the first ``dual_depth`` of them with a second attention on the image;
    ``single_depth``: single blocks after them. ``context_ends``: the last double block reads the text
    and does not change it; by default where no single block follows. ``context_norm``: an RMSNorm on
    the context. ``null``: what a dropped sample is told, a ``learned`` embedding or ``zero``.
    ``bias``: of all linear maps. ``shared_modulation``: one for all double blocks, and one for all
    single ones.
    ``positions``: see ``models/mmdit_positions.py``; ``position_table``: rows of SD3's table, and to
    how many of an image they belong. Conditions, ``time_scale`` and the rest are those of
    ``models/dit.py``. Published networks want t from 0 to 1000: ``path.time_scale=1000``.

    Without a context there is one stream. Raises UserError for numbers that do not fit together.
    """
    own = {
        "depth": depth,
        "dual_depth": dual_depth,
        "single_depth": single_depth,
        "width": width,
        "heads": heads,
        "patch": patch,
        "context_dim": context_dim,
        "context_norm": context_norm,
        "context_ends": context_ends,
        "pooled_dim": pooled_dim,
        "guidance_input": guidance_input,
        "null": null,
        "mlp": mlp,
        "mlp_ratio": mlp_ratio,
        "qk_norm": qk_norm,
        "bias": bias,
        "shared_modulation": shared_modulation,
        "positions": positions,
        "position_table": position_table,
        "rope_axes": rope_axes,
        "rope_theta": rope_theta,
    }
    chosen = sizes.DEFAULTS | (sizes.parse(size) if size is not None else {})
    chosen |= {k: v for k, v in own.items() if v is not None}
    missing = [k for k in ("depth", "width", "heads") if k not in chosen]
    if missing:
        raise UserError(f"give a size, such as 'SD3-medium', or also: {', '.join(missing)}")
    if dtype not in DTYPES:
        raise UserError(f"got dtype={dtype!r}: {config.suggest(dtype, list(DTYPES))}")
    check_remat(remat)
    attention_module.check(attention)
    if chosen["context_dim"] is None:
        chosen["context_ends"] = False
    elif chosen["context_ends"] is None:
        chosen["context_ends"] = not (chosen["single_depth"] or chosen["shared_modulation"])
    sizes.check(chosen)
    head_dim = chosen["width"] // chosen["heads"]
    axes = tuple(chosen["rope_axes"] or layouts.axes_of(chosen["positions"], head_dim))
    if "rope" in chosen["positions"]:
        layouts.check_axes(axes, chosen["positions"], head_dim)
    chosen |= {"patch": patches.as_patch(chosen["patch"]), "rope_axes": axes}
    return MMDiT(
        in_channels=in_channels,
        out_channels=(out_channels or in_channels) * (2 if learn_sigma else 1),
        num_classes=num_classes,
        second_time=second_time,
        concat_channels=concat_channels,
        time_scale=time_scale,
        norm_eps=norm_eps,
        remat=remat,
        unroll=unroll,
        dtype=dtype,
        attention=attention,
        **chosen,
    )
