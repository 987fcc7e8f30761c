"""Z-Image: one stream of image and text after refiners of each (Z-Image Team 2025).

patchify -> linear -> refiner blocks; text -> norm, linear -> refiner blocks, which are not told the
time; then blocks over the row ``[image, text]``; norm, linear -> unpatchify. Image and text are each
filled up to a multiple of 32 tokens with a learned token, which is seen like any other; text beyond
that is not. ``x``: ``b f h w c``; ``t``: a prefix of x, as in ``models/dit.py``: where the image has
several times, the text has the mean of their embeddings. The published network counts time from 0,
noise, to 1000, data, and points to the data: both are turned here.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dit import config
from dit.models import attention as attention_module
from dit.models import condition as condition_module
from dit.models import patchify as patches
from dit.models import positions as position_module
from dit.models import stack
from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.dit import DTYPES
from dit.models.embeddings import FREQUENCIES, ContextEmbedding
from dit.models.layers import Linear, normal, wide
from dit.models.mmdit_blocks import ROW, Angles
from dit.models.network import Level, Shape
from dit.models.remat import check_remat
from dit.models.stack import Stage
from dit.models.transformer import Transformer
from dit.models.zimage_blocks import HIDDEN, TIME, Block, Final, Style, Time, Told
from dit.types import Cond, Count, Positive, Tiny, UserError, Whole

FILLED = 32  # tokens of which image and text have a multiple
END = 1000.0  # the time of data in the published network
SIZES = {
    "Z-Image": {"depth": 30, "width": 3840, "heads": 30, "context_dim": 2560}
    | {"rope_axes": (32, 48, 48), "null": "zero"}
}


class ZImage(Transformer):
    """A description of the model (hashable, no arrays). Made and checked by ``build``."""

    once: ClassVar[tuple[str, ...]] = (*Transformer.once, "text_refiner")
    num_classes: ClassVar[None] = None
    pooled_dim: ClassVar[None] = None
    second_time: ClassVar[bool] = False
    guidance_input: ClassVar[bool] = False
    concat_channels: ClassVar[None] = None
    positions: ClassVar[str] = "rope"
    bias: ClassVar[bool] = True  # of the maps outside of attention and MLP

    depth: int
    refiner_depth: int
    width: int
    heads: int
    patch: patches.Patch
    in_channels: int
    out_channels: int
    context_dim: int | None
    null: str
    rope_axes: tuple[int, ...]
    rope_theta: float
    time_scale: float
    norm_eps: float
    remat: str
    unroll: str | int | bool
    dtype: str
    attention: str

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Refiners of the image and of the text, each by itself, and blocks over the row of both."""
        names = ("image",) if self.context_dim is None else ("image", "text")
        refiners = [Stage(f"{n}_refiner", self.refiner_depth, merge=(n,)) for n in names]
        stages = (*refiners, Stage("blocks", self.depth, merge=names))
        return tuple(stage for stage in stages if stage.depth)

    @nn.nowrap
    def block(self, stage: str) -> nn.Module:
        """A block of a stage, a description by itself."""
        style = Style(self.width, self.heads, self.norm_eps, self.dtype, self.attention)
        where = stage.removesuffix("_refiner") if stage != "blocks" else ROW
        return Block(style, where, adaptive=where != "text", parent=None)

    def setup(self):
        d = self.width
        for stage in self.stages:
            setattr(self, stage.name, self.block(stage.name))
        self.embed = Linear((d,), ("patch", "embed"), self.dtype)
        self.time = Time(min(d, TIME), str(wide(self.dtype)))
        boxed = nn.with_logical_partitioning(normal, (None, "embed"))
        self.image_fill = self.param("image_fill", boxed, (1, d))
        if self.context_dim is not None:
            options = {"learned": self.null == "learned", "norm": True, "norm_eps": self.norm_eps}
            self.context = ContextEmbedding(self.context_dim, d, self.dtype, False, **options)
            self.text_fill = self.param("text_fill", boxed, (1, d))
        self.final = Final(math.prod(self.patch) * self.out_channels, self.dtype)

    def __call__(
        self, x: Float[Array, "..."], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w c_out"]:
        """Raises UserError for shapes that do not fit and for conditions missing or not expected."""
        condition_module.check_data(self, x)
        place = patches.positions(x.shape[1:4], self.patch)
        condition_module.check_time(t, x)
        condition_module.check(self, t, vars(cond), (*x.shape[:4], self.concat_channels))
        image = filled(self.embed(patches.patchify(x, self.patch)), self.image_fill)
        streams, mask, length = {"image": image}, None, 0
        if cond.context is not None:
            text, mask = self.context(cond.context, cond.context_mask, cond.drop)
            streams["text"], mask, length = self.read(text, mask)
        streams = {
            name: constrain(s.astype(self.dtype), "act_batch", "act_length", "act_embed")
            for name, s in streams.items()
        }
        lengths, n = {name: s.shape[1] for name, s in streams.items()}, place.shape[1]
        time = self.times_of(x, t)
        told = Told(
            *rows(time, n, lengths), seen(mask, lengths), self.angles(place, lengths, length)
        )
        image = stack.run(self, self.stages, streams, told)["image"][:, :n]
        return patches.unpatchify(-self.final(image, time), self.patch, x.shape[1:4])

    def read(self, text: Float[Array, "b m d"], mask: Bool[Array, "b m"] | None):
        """The text filled up, real tokens first; which of it is seen (None: all); its length."""
        if mask is None:
            text = filled(text, self.text_fill)
            return text, None, text.shape[1]
        order = jnp.argsort(~mask, axis=1, stable=True)
        text = filled(jnp.take_along_axis(text, order[..., None], axis=1), self.text_fill)
        count = mask.sum(1, keepdims=True)
        at = jnp.arange(text.shape[1])[None]
        fill = self.text_fill[None].astype(text.dtype)
        text = jnp.where((at < count)[..., None], text, fill)
        length = FILLED * jnp.maximum(-(-count // FILLED), 1)  # b 1
        return text, at < length, length[..., None]

    def times_of(self, x: Array, t: Array) -> Float[Array, "b k e"]:
        """The embedding of every noise level, averaged over the frames of a patch."""
        levels = patches.levels(t, x.shape[:4], self.patch).astype(wide(self.dtype))
        time = self.time(END - levels * self.time_scale)
        if t.ndim == 2:
            time = time.reshape(len(t), -1, self.patch[0], time.shape[-1]).mean(2)
        return constrain(time, "act_batch", None, None)

    def angles(
        self, place: Float[Array, "1 n 3"], lengths: dict[str, int], length: int | Array
    ) -> Angles:
        """Rotary angles of image, text and their row.

        The text counts along time from 1 on, the frames of the image go on after its ``length``, and
        what fills the image up lies at the origin.
        """
        image = place + (1 + length) * jnp.asarray([1.0, 0.0, 0.0])[None, None]
        image = jnp.pad(image, ((0, 0), (0, lengths["image"] - place.shape[1]), (0, 0)))
        places = {"image": image, ROW: image}
        if "text" in lengths:
            count = 1 + jnp.arange(lengths["text"], dtype=image.dtype)[None, :, None]
            text = places["text"] = jnp.pad(count, ((0, 0), (0, 0), (0, 2)))
            text = jnp.broadcast_to(text, (len(image), *text.shape[1:]))
            places[ROW] = jnp.concatenate([image, text], axis=1)
        return {
            name: position_module.rotary(p, self.rope_axes, self.rope_theta)
            for name, p in places.items()
        }

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; the blocks' parts are of all layers of a stage together.

        A network that takes a context has at least one token of it.
        """
        d, n, pixels, e = (
            self.width,
            self.tokens(shape),
            math.prod(self.patch),
            min(self.width, TIME),
        )
        times = self.times(shape, level)
        count = times // self.patch[0] if level == "frame" else times
        lengths, m = {"image": whole(n)}, max(context_len, 1)
        if self.context_dim is not None:
            lengths["text"] = whole(m)
        lengths[ROW] = sum(lengths.values())
        macs = {
            "embed": n * pixels * self.in_channels * d,
            "time/in": times * FREQUENCIES * HIDDEN,
            "time/out": times * HIDDEN * e,
            "context": 0 if self.context_dim is None else m * self.context_dim * d,
            "final": n * d * pixels * self.out_channels + count * e * d,
        }
        for stage in self.stages:
            block = self.block(stage.name)
            parts = block.macs(lengths[block.where], count + (count > 1))
            macs |= {f"{stage.name}/{part}": stage.depth * m for part, m in parts.items()}
        return macs

    def stream(self, shape: Shape) -> int:
        """The image's tokens, as they enter each block."""
        return self.tokens(shape) * self.width * (self.refiner_depth + self.depth)


def whole(n: int) -> int:
    """The multiple of ``FILLED`` that holds ``n`` tokens."""
    return -(-n // FILLED) * FILLED


def filled(x: Float[Array, "b n d"], token: Float[Array, "1 d"]) -> Float[Array, "b _ d"]:
    """``x`` with copies of a token behind it, a multiple of ``FILLED``."""
    b, n, d = x.shape
    fill = jnp.broadcast_to(token[None].astype(x.dtype), (b, whole(n) - n, d))
    return jnp.concatenate([x, fill], axis=1)


def rows(
    time: Float[Array, "b k e"], n: int, lengths: dict[str, int]
) -> tuple[Float[Array, "b _ e"], dict[str, Int[Array, "b _"]]]:
    """What tells the time, and which of it a token has: one time is everyone's.

    Of several the image's ``n`` tokens have each their own; all others have the mean, the first.
    """
    k = time.shape[1]
    if k == 1:
        return time, {}
    which = 1 + jnp.arange(n) // (n // k)
    found = {}
    for name, length in (("image", lengths["image"]), (ROW, sum(lengths.values()))):
        found[name] = jnp.broadcast_to(jnp.pad(which, (0, length - n)), (len(time), length))
    return jnp.concatenate([time.mean(1, keepdims=True), time], axis=1), found


def seen(mask: Bool[Array, "b m"] | None, lengths: dict[str, int]) -> dict[str, Visibility]:
    """Which tokens of the text and of the row are seen; all, where there is no ``mask``."""
    if mask is None:
        return {}
    row = jnp.pad(mask, ((0, 0), (lengths["image"], 0)), constant_values=True)
    return {"text": Visibility(k_valid=mask), ROW: Visibility(k_valid=row)}


def build(
    *,
    size: str | None = None,
    depth: Count | None = None,
    refiner_depth: Whole = 2,
    width: Count | None = None,
    heads: Count | None = None,
    patch: Count | tuple[Count, Count, Count] = 2,
    in_channels: Count,
    out_channels: Count | None = None,
    learn_sigma: bool = False,
    context_dim: Count | None = None,
    null: Literal["learned", "zero"] | None = None,
    rope_axes: tuple[Whole, ...] | None = None,
    rope_theta: Positive = 256.0,
    time_scale: Positive = 1.0,
    norm_eps: Tiny = 1e-5,
    remat: str = "none",
    unroll: Literal["auto"] | bool | Count = "auto",
    dtype: str = "float32",
    attention: str = "auto",
) -> ZImage:
    """The published network (``size="Z-Image"``), or one of its own numbers, which take precedence.

    ``depth``: blocks over the row of both; ``refiner_depth``: blocks of each alone before them.
    ``null``: what a dropped sample is told, a ``learned`` embedding or, as a size has it, ``zero``. The
    published network wants t from 0 to 1000: ``path.time_scale=1000``. Without a context there is one
    stream. Raises UserError for numbers that do not fit together.
    """
    if size is not None and size not in SIZES:
        raise UserError(f"no size {size!r}: {config.suggest(size, list(SIZES))}")
    own = {
        "depth": depth,
        "width": width,
        "heads": heads,
        "context_dim": context_dim,
        "null": null,
        "rope_axes": rope_axes,
    }
    chosen = {"context_dim": None, "null": "learned", "rope_axes": None, **SIZES.get(size, {})}
    chosen |= {k: v for k, v in own.items() if v is not None}
    missing = [k for k in ("depth", "width", "heads") if k not in chosen]
    if missing:
        raise UserError(f"give size='Z-Image', or also: {', '.join(missing)}")
    if dtype not in DTYPES:
        raise UserError(f"got dtype={dtype!r}: {config.suggest(dtype, list(DTYPES))}")
    check_remat(remat)
    attention_module.check(attention)
    if chosen["width"] % chosen["heads"]:
        raise UserError(
            f"got width={chosen['width']} and heads={chosen['heads']}; heads must divide the width"
        )
    head_dim = chosen["width"] // chosen["heads"]
    axes = tuple(chosen["rope_axes"] or position_module.default_axes(head_dim))
    position_module.check_axes(axes, head_dim)
    chosen |= {"patch": patches.as_patch(patch), "rope_axes": axes}
    return ZImage(
        refiner_depth=refiner_depth,
        in_channels=in_channels,
        out_channels=(out_channels or in_channels) * (2 if learn_sigma else 1),
        rope_theta=rope_theta,
        time_scale=time_scale,
        norm_eps=norm_eps,
        remat=remat,
        unroll=unroll,
        dtype=dtype,
        attention=attention,
        **chosen,
    )
