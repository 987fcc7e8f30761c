"""The diffusion transformer of Peebles & Xie (2023), for images and video alike.

patchify -> linear (+ positions) -> blocks -> norm, linear -> unpatchify. The condition (time, class
label, context, ...) reaches the blocks in the way they ask for. ``x``: ``b f h w c``; ``t``: a prefix
of x, ``(b,)``, ``(b, f)`` with one noise level a frame, or ``(b, f, h, w)`` with one a token, constant
within a patch; out: ``b f h w c_out``, with a learned variance ``[prediction, variance]`` along the
channels.
"""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import config
from dit.models import attention as attention_module
from dit.models import condition as condition_module
from dit.models import patchify as patches
from dit.models import positions as position_module
from dit.models import sizes, stack
from dit.models.activations import constrain
from dit.models.cache import Cache
from dit.models.condition import Condition
from dit.models.embeddings import (
    ContextEmbedding,
    LabelEmbedding,
    PooledEmbedding,
    TimeEmbedding,
)
from dit.models.layers import (
    Linear,
    Modulation,
    Norm,
    modulate,
    spread,
    wide,
    zeros,
)
from dit.models.remat import check_remat
from dit.models.transformer import Transformer, make_block
from dit.types import Cond, Count, Positive, Tiny, Tokens, UserError, Whole

DTYPES = ("float32", "bfloat16", "float16", "float64")
POSITIONS = ("sincos", "rope", "sincos+rope")
GUIDANCE_SCALE = 1000.0  # by which Flux multiplies a guidance scale before its sinusoids


class Final(nn.Module):
    """Norm, modulated if the blocks are, and a linear map that starts at zero."""

    features: int
    adaptive: bool
    norm: str
    dtype: str
    eps: float
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], c: Condition) -> Float[Array, "b n p"]:
        affine = self.norm == "rms" or not self.adaptive
        h = Norm(self.norm, affine, self.eps, name="norm")(x)
        if self.adaptive:
            parts = Modulation(2, self.dtype, self.bias, name="modulation")(c.vector)
            shift, scale = (spread(part, x.shape[1], c.row) for part in parts)
            h = modulate(h, shift, scale)
        axes = ("embed", "patch")
        out = Linear((self.features,), axes, self.dtype, zeros, self.bias, name="linear")
        return out(h).astype(wide(x.dtype))


class DiT(Transformer):
    """A description of the model (hashable, no arrays). Made and checked by ``build``."""

    depth: int
    width: int
    heads: int
    patch: patches.Patch
    in_channels: int
    out_channels: int
    num_classes: int | None
    context_dim: int | None
    pooled_dim: int | None
    second_time: bool
    guidance_input: bool
    concat_channels: int | None
    block: str
    block_options: tuple[tuple[str, object], ...]
    positions: str
    rope_theta: float
    rope_axes: tuple[int, int, int]
    position_scale: tuple[float, float, float]
    time_scale: float
    time_denominator: float | None
    norm_eps: float
    frame_causal: bool
    remat: str
    unroll: str | int | bool
    dtype: str
    attention: str

    def setup(self):
        block = make_block(self)
        self.uses = block.uses
        self.blocks = block
        d, wide_type = self.width, str(wide(self.dtype))
        self.embed = Linear((d,), ("patch", "embed"), self.dtype)
        self.time = TimeEmbedding(d, wide_type, self.time_scale, self.time_denominator)
        if self.num_classes is not None:
            self.label = LabelEmbedding(self.num_classes, d)
        if self.context_dim is not None:
            pool = self.uses == "vector"
            self.context = ContextEmbedding(self.context_dim, d, wide_type, pool)
        if self.pooled_dim is not None:
            self.pooled = PooledEmbedding(d, wide_type)
        if self.second_time:
            times = (self.time_scale, self.time_denominator)
            self.r = TimeEmbedding(d, wide_type, *times, silent=True)
        if self.guidance_input:
            self.guidance = TimeEmbedding(d, wide_type, GUIDANCE_SCALE, silent=True)
        if self.concat_channels is not None:
            self.concat = Linear((d,), ("patch", "embed"), self.dtype, zeros, bias=False)
        self.final = Final(
            self.patch[0] * self.patch[1] * self.patch[2] * self.out_channels,
            self.uses in ("vector", "both"),
            getattr(block, "norm", "layer"),
            self.dtype,
            self.norm_eps,
        )

    def __call__(
        self, x: Float[Array, "..."], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w c_out"]:
        """Raises UserError for shapes that do not fit and for conditions missing or not expected."""
        condition_module.check_data(self, x)
        _, h, w = patches.grid(x.shape[1:4], self.patch)
        condition_module.check_time(t, x)
        condition_module.check(self, t, vars(cond), (*x.shape[:4], self.concat_channels))
        tokens = Tokens(
            x=patches.patchify(x, self.patch),
            position=patches.positions(x.shape[1:4], self.patch),
            concat=None if cond.concat is None else patches.patchify(cond.concat, self.patch),
        )
        r = None if cond.r is None else patches.levels(cond.r, x.shape[:4], self.patch)
        rows = patches.levels(t, x.shape[:4], self.patch)
        per_frame = t.ndim == 2
        out = self.forward(tokens, rows, cond.replace(r=r), frame_size=h * w, per_frame=per_frame)
        return patches.unpatchify(out, self.patch, x.shape[1:4])

    def continued(
        self, x: Float[Array, "..."], t: Float[Array, "..."], cond: Cond, cache: Cache
    ) -> tuple[Float[Array, "b f h w c_out"], Cache]:
        """See ``Network``. ``cache``: as ``empty_cache`` makes it, with what came before written."""
        condition_module.check_data(self, x)
        condition_module.check_time(t, x)
        condition_module.check(self, t, vars(cond), (*x.shape[:4], self.concat_channels))
        f, *sides = patches.grid(x.shape[1:4], self.patch)
        before, now = (patches.positions_at(place, sides) for place in cache.places(f))
        tokens = Tokens(
            x=patches.patchify(x, self.patch),
            position=now,
            concat=None if cond.concat is None else patches.patchify(cond.concat, self.patch),
        )
        r = None if cond.r is None else patches.levels(cond.r, x.shape[:4], self.patch)
        rows, size = patches.levels(t, x.shape[:4], self.patch), math.prod(sides)
        x_shape, told = x.shape[1:4], cond.replace(r=r)
        x, condition = self.begin(tokens, rows, told, frame_size=size, per_frame=t.ndim == 2)
        keys = self.scaled(jnp.concatenate([before, now], 1))
        past = cache.past(position_module.rotary(keys, self.rope_axes, self.rope_theta))
        condition = condition.replace(visible=cache.visible(f), past=past)
        x, new = stack.continued(self, self.stages[0], x, condition)
        out = patches.unpatchify(self.final(x, condition), self.patch, x_shape)
        return out, cache.written(*new)

    def transform(
        self, tokens: Tokens, t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b n p"]:
        """From patches as tokens to patches, for tokens of any origin.

        ``t``: ``(b,)`` or ``(b, n)``; or ``(b, r)``, with ``tokens.row`` saying which of the ``r`` each
        token has. With ``tokens.segment`` a token sees those of its own segment only; if
        ``frame_causal``, none of a later ``tokens.frame``. Known channels are ``tokens.concat``.
        The conditions of packed samples are those of all ``s`` segments of each row, ``(b s, ...)``;
        t is then ``(b, s)``, and ``tokens.row`` the segment, below ``s`` for padding too.
        """
        if tokens.row is None:
            condition_module.check_time(t, tokens.x)
        known = (*tokens.x.shape[:2], math.prod(self.patch) * (self.concat_channels or 0))
        given = vars(cond) | {"concat": cond.concat if tokens.concat is None else tokens.concat}
        each = t if tokens.segment is None else t.reshape(-1)
        condition_module.check(self, each, given, known)
        return self.forward(tokens, t.reshape(len(t), -1), cond)

    def check_packed(self) -> None:
        """Raise UserError for a block, or known channels, that cannot be packed."""
        if make_block(self).uses not in condition_module.PACKED:
            raise UserError(condition_module.packed_only(self.block))
        if self.concat_channels is not None:
            raise UserError(
                "got a network with concat_channels, and examples are packed without them: leave out "
                "one of model.concat_channels and packing.tokens"
            )

    def check_teacher_forced(self) -> None:
        """Raise UserError for a block that is told one time for all tokens, and if not causal."""
        adaptive = make_block(self).uses in condition_module.PACKED
        for right, name, expected in (
            (self.frame_causal, "frame_causal", "True: a frame is drawn after those before it"),
            (adaptive, "block", "an adaptive one, which is told times as vectors"),
        ):
            if not right:
                got = getattr(self, name)
                raise UserError(
                    f"got objective teacher_forcing and model.{name}={got!r}; it needs {expected}"
                )

    def forward(
        self,
        tokens: Tokens,
        t: Float[Array, "b k"],
        cond: Cond,
        frame_size: int | None = None,
        per_frame: bool = False,
    ) -> Float[Array, "b n p"]:
        """From patches to patches; a time for each of ``k`` equal blocks of tokens, or for each frame.

        Embeddings of times are averaged over the frames of a patch.
        """
        n = tokens.x.shape[1]
        x, condition = self.begin(tokens, t, cond, frame_size, per_frame)
        x = stack.run(self, self.stages, {"image": x}, condition)["image"]
        if self.uses == "prefix":
            x = x[:, x.shape[1] - n :]
        return self.final(x, condition)

    def begin(
        self,
        tokens: Tokens,
        t: Float[Array, "b k"],
        cond: Cond,
        frame_size: int | None = None,
        per_frame: bool = False,
    ) -> tuple[Float[Array, "b _ d"], Condition]:
        """What the blocks are given: tokens, and the condition in their form; as for ``forward``."""
        position = self.scaled(tokens.position)
        x = self.embed(tokens.x)
        if tokens.concat is not None:
            x = x + self.concat(tokens.concat)
        if "sincos" in self.positions:
            x = x + position_module.sincos(position, self.width)
        rotary = None
        if "rope" in self.positions:
            rotary = position_module.rotary(position, self.rope_axes, self.rope_theta)
        time = condition_module.embed_time(self, t, cond)
        if per_frame:
            time = time.reshape(t.shape[0], -1, self.patch[0], self.width).mean(2)
        x, condition = condition_module.prepare(self, x, time, cond, tokens, rotary, frame_size)
        return constrain(x.astype(self.dtype), "act_batch", "act_length", "act_embed"), condition

    def scaled(self, position: Float[Array, "b n 3"]) -> Float[Array, "b n 3"]:
        """Positions in the model's units."""
        return position * jnp.asarray(self.position_scale, position.dtype)[None, None]


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
    pooled_dim: Count | None = None,
    second_time: bool = False,
    guidance_input: bool = False,
    concat_channels: Count | None = None,
    block: str = "adaln_zero",
    positions: str | None = None,
    mlp_ratio: Positive = 4.0,
    qk_norm: bool | None = None,
    norm_eps: Tiny = 1e-6,
    rope_theta: Positive = 10000.0,
    rope_axes: tuple[Whole, Whole, Whole] | None = None,
    position_scale: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0),
    time_scale: Positive = 1.0,
    frame_causal: bool = False,
    remat: str = "none",
    unroll: Literal["auto"] | bool | Count = "auto",
    dtype: str = "float32",
    attention: str = "auto",
    quirks: str | None = None,
) -> DiT:
    """A model from a size of the paper (``"XL/2"``) or from its own numbers, which take precedence.

    ``patch``: ``p`` for ``(1, p, p)``, or (frames, height, width); 2 by default. ``learn_sigma``
    doubles the output channels. ``pooled_dim``, ``second_time``, ``guidance_input`` and
    ``concat_channels`` make the model take ``Cond``'s ``pooled``, ``r``, ``guidance`` and ``concat``;
    each starts without effect, so that a model that takes more can begin with the parameters of one
    that takes less (``init_from.only`` then names the parts that both have). ``positions``:
    ``sincos``, ``rope`` or ``sincos+rope``; None for the block's own. ``rope_axes``: channels of a head
    for time, y and x. ``position_scale`` multiplies positions, which count patches. ``time_scale``
    multiplies what the path tells the network of t. ``frame_causal``: no token sees a later frame.
    ``remat``: see ``models/remat.py``. ``unroll``: layers a loop step, ``auto`` for one on a TPU and all
    elsewhere (see ``models/stack.py``). ``quirks="diffusers"``: that library's divisor 127 in the time
    embedding and epsilon 1e-5 in the second norm.

    Raises UserError for numbers that do not fit together.
    """
    given = {"depth": depth, "width": width, "heads": heads, "patch": patch}
    base = {"patch": 2} | (sizes.parse(size) if size is not None else {})
    chosen = base | {k: v for k, v in given.items() if v is not None}
    missing = [k for k in given if k not in chosen]
    if missing:
        raise UserError(f"give a size, such as 'S/2', or also: {', '.join(missing)}")
    depth, width, heads = chosen["depth"], chosen["width"], chosen["heads"]
    if width % heads:
        raise UserError(f"got width={width} and heads={heads}; heads must divide the width")
    for name, value, known in (
        ("dtype", dtype, DTYPES),
        ("quirks", quirks, (None, "diffusers")),
    ):
        if value not in known:
            raise UserError(f"got {name}={value!r}: {config.suggest(value, list(map(str, known)))}")
    check_remat(remat)
    attention_module.check(attention)
    options = {"mlp_ratio": float(mlp_ratio), "norm_eps": norm_eps}
    if qk_norm is not None:
        options["qk_norm"] = qk_norm
    if quirks == "diffusers":
        options["mlp_norm_eps"] = 1e-5
    description = config.resolve("models.blocks", block, heads=heads, **options)
    positions = description.positions if positions is None else positions
    if positions not in POSITIONS:
        raise UserError(f"no positions {positions!r}: {config.suggest(positions, list(POSITIONS))}")
    if "sincos" in positions and width % 4:
        raise UserError(f"got width={width}; sincos positions need a multiple of 4")
    rope_axes = tuple(rope_axes or position_module.default_axes(width // heads))
    if "rope" in positions:
        position_module.check_axes(rope_axes, width // heads)
    return DiT(
        depth=depth,
        width=width,
        heads=heads,
        patch=patches.as_patch(chosen["patch"]),
        in_channels=in_channels,
        out_channels=(out_channels or in_channels) * (2 if learn_sigma else 1),
        num_classes=num_classes,
        context_dim=context_dim,
        pooled_dim=pooled_dim,
        second_time=second_time,
        guidance_input=guidance_input,
        concat_channels=concat_channels,
        block=block,
        block_options=tuple(sorted(options.items())),
        positions=positions,
        rope_theta=rope_theta,
        rope_axes=rope_axes,
        position_scale=tuple(position_scale),
        time_scale=time_scale,
        time_denominator=127.0 if quirks == "diffusers" else None,
        norm_eps=norm_eps,
        frame_causal=frame_causal,
        remat=remat,
        unroll=unroll,
        dtype=dtype,
        attention=attention,
    )
