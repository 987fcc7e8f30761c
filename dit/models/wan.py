"""Wan and LTX-Video: transformers for video that read a text by cross-attention (Wan et al. 2025, sec.
4.2; HaCohen et al. 2024, sec. 3).

patchify -> linear; blocks with rotary positions of time, height and width; norm, linear -> unpatchify.
The text goes through an MLP, and so does the time, whose embedding modulates all blocks through one
linear map: see ``models/wan_blocks.py``. Label, pooled text, guidance and the second time are added to
the time, as in ``models/dit.py``. ``x``: ``b f h w c``; ``t``: a prefix of x: one time a sample, a frame
or a token, as where the first frame of a clip is known and has time 0 (Wan2.2-TI2V-5B).

LTX-Video has RMSNorms in its blocks, none before cross-attention, and rotary angles that differ from
head to head and tell seconds and pixels as shares of a span.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import config
from dit.models import attention as attention_module
from dit.models import condition as condition_module
from dit.models import patchify as patches
from dit.models import positions as position_module
from dit.models import stack
from dit.models import wan_sizes as sizes
from dit.models.activations import constrain
from dit.models.dit import DTYPES, GUIDANCE_SCALE
from dit.models.embeddings import (
    FREQUENCIES,
    ContextEmbedding,
    LabelEmbedding,
    PooledEmbedding,
    TimeEmbedding,
)
from dit.models.layers import Linear, Modulation, wide, zeros
from dit.models.network import Level, Shape
from dit.models.remat import check_remat
from dit.models.transformer import Transformer
from dit.models.wan_blocks import PARTS, Head, ImageEmbedding, Told, WanBlock
from dit.types import Cond, Count, Positive, Tiny, UserError, Whole

SPANS = {"rope_span": (20.0, 2048.0, 2048.0), "latent_size": (8, 32, 32), "fps": 25.0}


class Wan(Transformer):
    """A description of the model (hashable, no arrays). Made and checked by ``build``."""

    bias: ClassVar[bool] = True
    positions: ClassVar[str] = "rope"
    once: ClassVar[tuple[str, ...]] = (*Transformer.once, "context_out", "image")

    depth: int
    width: int
    heads: int
    patch: patches.Patch
    in_channels: int
    out_channels: int
    num_classes: int | None
    context_dim: int | None
    image_context: tuple[int, int] | None
    image_positions: bool
    pooled_dim: int | None
    second_time: bool
    guidance_input: bool
    concat_channels: int | None
    null: str
    mlp_ratio: float
    qk_norm: bool
    norm: str
    cross_norm: bool
    rope: str
    rope_axes: tuple[int, int, int] | None
    rope_theta: float
    rope_span: tuple[float, float, float] | None
    latent_size: tuple[int, int, int] | None
    fps: float | None
    time_scale: float
    norm_eps: float
    qk_norm_eps: float
    remat: str
    unroll: str | int | bool
    dtype: str
    attention: str

    @nn.nowrap
    def block(self) -> WanBlock:
        """One of the blocks, a description by itself."""
        return WanBlock(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_norm,
            norm=self.norm,
            cross_norm=self.cross_norm,
            eps=self.norm_eps,
            qk_eps=self.qk_norm_eps,
            dtype=self.dtype,
            kernel=self.attention,
            parent=None,
        )

    def setup(self):
        d, wide_type, learned = self.width, str(wide(self.dtype)), self.null == "learned"
        self.blocks = self.block()
        self.embed = Linear((d,), ("patch", "embed"), self.dtype)
        self.time = TimeEmbedding(d, wide_type, self.time_scale)
        self.modulation = Modulation(PARTS, wide_type)
        if self.num_classes is not None:
            self.label = LabelEmbedding(self.num_classes, d)
        if self.context_dim is not None:
            self.context = ContextEmbedding(self.context_dim, d, self.dtype, False, learned)
            self.context_out = Linear((d,), ("embed", "embed_out"), self.dtype)
        if self.image_context is not None:
            self.image = ImageEmbedding(d, self.dtype, self.image_positions)
        if self.pooled_dim is not None:
            self.pooled = PooledEmbedding(d, wide_type, learned)
        if self.second_time:
            self.r = TimeEmbedding(d, wide_type, self.time_scale, silent=True)
        if self.guidance_input:
            self.guidance = TimeEmbedding(d, wide_type, GUIDANCE_SCALE, silent=True)
        if self.concat_channels is not None:
            self.concat = Linear((d,), ("patch", "embed"), self.dtype, zeros, bias=False)
        self.final = Head(math.prod(self.patch) * self.out_channels, self.dtype, self.norm_eps)

    def __call__(
        self, x: Float[Array, "..."], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w c_out"]:
        """Raises UserError for shapes that do not fit and for conditions missing or not expected."""
        condition_module.check_data(self, x)
        condition_module.check_time(t, x)
        condition_module.check(self, t, vars(cond), (*x.shape[:4], self.concat_channels))
        h = self.embed(patches.patchify(x, self.patch))
        if cond.concat is not None:
            h = h + self.concat(patches.patchify(cond.concat, self.patch))
        h = constrain(h.astype(self.dtype), "act_batch", "act_length", "act_embed")
        time = self.times_of(x, t, cond)
        told = self.told_by(time, cond, patches.positions(x.shape[1:4], self.patch))
        h = stack.run(self, self.stages, {"image": h}, told)["image"]
        return patches.unpatchify(self.final(h, time), self.patch, x.shape[1:4])

    def told_by(self, time: Float[Array, "b k d"], cond: Cond, position: Array) -> Told:
        """What the blocks are told.

        Its constraints are not for speed alone: without those around ``context_out`` the gradients of
        the text were wrong, though the loss was right, on meshes that split heads (``tensor``).
        """
        told = Told(self.modulation(time), self.rotary(position))
        if cond.context is not None:
            context, mask = self.context(cond.context, cond.context_mask, cond.drop)
            context = constrain(context, "act_batch", None, "act_embed")
            context = self.context_out(nn.gelu(context, approximate=True))
            context = constrain(context, "act_batch", None, "act_embed")
            told = told.replace(context=context, mask=mask)
        if cond.image_context is not None:
            image = self.image(cond.image_context).astype(self.dtype)
            told = told.replace(image=constrain(image, "act_batch", None, "act_embed"))
        return told

    def rotary(self, position: Float[Array, "1 n 3"]) -> position_module.Rotary:
        """Of positions counted in patches; spans are of seconds and pixels."""
        if self.rope == "axes":
            return position_module.rotary(position, self.rope_axes, self.rope_theta)
        size = [a * b for a, b in zip(self.patch, self.latent_size, strict=True)]
        time, *space = (position[..., i] * n for i, n in enumerate(size))  # in frames and pixels
        if self.rope == "span_causal":
            time = jnp.maximum(time + 1 - self.latent_size[0], 0)
        place = (time * (1 / self.fps), *space)
        share = jnp.stack([a / span for a, span in zip(place, self.rope_span, strict=True)], -1)
        return position_module.spanning(
            share, self.heads, self.width // self.heads, self.rope_theta
        )

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; the blocks' parts are of all layers together.

        A network that takes a context has at least one token of it.
        """
        d, n, pixels = self.width, self.tokens(shape), math.prod(self.patch)
        times = self.times(shape, level)
        rows = times // self.patch[0] if level == "frame" else times
        m = 0 if self.context_dim is None else max(context_len, 1)
        i, e = self.image_context or (0, 0)
        macs = {
            "embed": n * pixels * self.in_channels * d,
            "concat": n * pixels * (self.concat_channels or 0) * d,
            "modulation": rows * d * PARTS * d,
            "context": m * (self.context_dim or 0) * d,
            "context_out": m * d * d,
            "image": i * (e * e + e * d),
            "pooled": 0 if self.pooled_dim is None else self.pooled_dim * d + d * d,
            "final": n * d * pixels * self.out_channels,
        }
        numbers = {"time": times, "r": times * self.second_time, "guidance": self.guidance_input}
        for name, count in numbers.items():
            macs |= {f"{name}/in": count * FREQUENCIES * d, f"{name}/out": count * d * d}
        parts = self.block().macs(n, m, i, d)
        return macs | {f"blocks/{part}": self.depth * count for part, count in parts.items()}


def build(
    *,
    size: str | None = None,
    depth: Count | None = None,
    width: Count | None = None,
    heads: Count | None = None,
    patch: Count | tuple[Count, Count, Count] | None = None,
    in_channels: Count,
    out_channels: Count | None = None,
    learn_sigma: bool = False,
    num_classes: Count | None = None,
    context_dim: Count | None = None,
    image_context: tuple[Count, Count] | None = None,
    image_positions: bool | None = None,
    pooled_dim: Count | None = None,
    second_time: bool = False,
    guidance_input: bool = False,
    concat_channels: Count | None = None,
    null: Literal["learned", "zero"] | None = None,
    mlp_ratio: Positive | None = None,
    qk_norm: bool = True,
    norm: Literal["layer", "rms"] | None = None,
    cross_norm: bool | None = None,
    rope: Literal["axes", "span", "span_causal"] | None = None,
    rope_axes: tuple[Whole, Whole, Whole] | None = None,
    rope_theta: Positive = 10000.0,
    rope_span: tuple[Positive, Positive, Positive] | None = None,
    latent_size: tuple[Count, Count, Count] | None = None,
    fps: Positive | None = None,
    time_scale: Positive = 1.0,
    norm_eps: Tiny = 1e-6,
    qk_norm_eps: Tiny | None = None,
    remat: str = "none",
    unroll: Literal["auto"] | bool | Count = "auto",
    dtype: str = "float32",
    attention: str = "auto",
) -> Wan:
    """A published network (``size``, of ``models/wan_sizes.py``), or one of its own numbers, which take
    precedence.

    ``image_context``: tokens and channels of ``Cond.image_context``, which has keys and values of its
    own beside the text's; ``image_positions``: learned positions are added to it (first and last frame).
    ``null``: what a dropped sample is told in place of its text, a ``learned`` embedding or ``zero``.
    ``qk_norm``: over all heads together, with ``qk_norm_eps`` (by default ``norm_eps``). ``norm``: of
    the blocks; ``cross_norm``: one before cross-attention too. ``rope``: ``axes`` gives each axis
    channels of a head, ``rope_axes``; ``span`` tells seconds and pixels as shares of ``rope_span`` (20 s
    and 2048 pixels), where a latent is ``latent_size`` frames and pixels (8 x 32 x 32) of a film of
    ``fps`` (25); in ``span_causal`` the first latent is one frame, so the others come that much earlier.
    Conditions, ``time_scale`` and the rest are those of ``models/dit.py``. Published networks want t
    from 0 to 1000: ``path.time_scale=1000``.

    Raises UserError for numbers that do not fit together.
    """
    own = {
        "depth": depth,
        "width": width,
        "heads": heads,
        "patch": patch,
        "context_dim": context_dim,
        "image_context": image_context,
        "image_positions": image_positions,
        "concat_channels": concat_channels,
        "null": null,
        "mlp_ratio": mlp_ratio,
        "norm": norm,
        "cross_norm": cross_norm,
        "rope": rope,
        "qk_norm_eps": qk_norm_eps,
    }
    chosen = sizes.DEFAULTS | (sizes.parse(size) if size is not None else {})
    chosen |= {k: v for k, v in own.items() if v is not None}
    missing = [k for k in ("depth", "width", "heads") if k not in chosen]
    if missing:
        raise UserError(f"give a size, such as 'Wan2.1-T2V-1.3B', or also: {', '.join(missing)}")
    if dtype not in DTYPES:
        raise UserError(f"got dtype={dtype!r}: {config.suggest(dtype, list(DTYPES))}")
    check_remat(remat)
    attention_module.check(attention)
    width, heads = chosen["width"], chosen["heads"]
    if width % heads:
        raise UserError(f"got width={width} and heads={heads}; heads must divide the width")
    if chosen["image_context"] is not None and chosen["context_dim"] is None:
        raise UserError("got image_context and no context_dim; an image is read beside a text")
    if chosen["image_positions"] and chosen["image_context"] is None:
        raise UserError("got image_positions and no image_context; give both or neither")
    chosen["qk_norm_eps"] = chosen["qk_norm_eps"] or norm_eps
    spans = {"rope_span": rope_span, "latent_size": latent_size, "fps": fps}
    if chosen["rope"] == "axes":
        axes = tuple(rope_axes or position_module.default_axes(width // heads))
        position_module.check_axes(axes, width // heads)
        given = [k for k, v in spans.items() if v is not None]
    else:
        axes, given = None, ["rope_axes"] if rope_axes is not None else []
        if width // heads % 2:
            raise UserError(f"got heads of {width // heads} channels; rope needs an even number")
        spans = {k: SPANS[k] if v is None else v for k, v in spans.items()}
    if given:
        raise UserError(
            f"got {', '.join(given)} with rope={chosen['rope']!r}, which has no use for it"
        )
    if chosen["image_context"] is not None:
        chosen["image_context"] = tuple(chosen["image_context"])
    return Wan(
        in_channels=in_channels,
        out_channels=(out_channels or in_channels) * (2 if learn_sigma else 1),
        num_classes=num_classes,
        pooled_dim=pooled_dim,
        second_time=second_time,
        guidance_input=guidance_input,
        qk_norm=qk_norm,
        rope_axes=axes,
        rope_theta=rope_theta,
        **{k: tuple(v) if isinstance(v, list) else v for k, v in spans.items()},
        time_scale=time_scale,
        norm_eps=norm_eps,
        remat=remat,
        unroll=unroll,
        dtype=dtype,
        attention=attention,
        **chosen | {"patch": patches.as_patch(chosen["patch"])},
    )
