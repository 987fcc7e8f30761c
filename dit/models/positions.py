"""Positions as functions of continuous ``(time, y, x)``: added sinusoids and rotary angles.

Nothing is tabulated, so any size, length and spacing works. In both *an image is the one-frame video
at time 0*: the added time part and the rotation along time vanish there.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dit.models.activations import WHOLE_HEADS, constrain
from dit.models.attention import platform
from dit.types import UserError

Rotary = tuple[
    Float[Array, "_ n *r"], Float[Array, "_ n *r"]
]  # cosines, sines; all heads' or each's


def frequencies(count: int, base: float, dtype) -> Float[Array, "1 1 {count}"]:
    """``base^(-i / count)`` for ``i = 0 .. count - 1``, as constants that are rounded once."""
    return jnp.asarray(base ** (-np.arange(count) / count), dtype)[None, None]


def sincos(position: Float[Array, "b n 3"], width: int) -> Float[Array, "b n {width}"]:
    """The table of the original DiT (after MAE), with a time part that is zero at time 0.

    Channels are ``[sin x, cos x, sin y, cos y]``, a quarter of the width each, at frequencies
    ``10000^(-i / (width / 4))``. To it is added ``[sin time, cos time - 1]``, a half of the width
    each: at time 0 an image has its own 2-D table exactly. Raises UserError unless 4 divides width.
    """
    if width % 4:
        raise UserError(f"got width={width}; sincos positions need a multiple of 4")
    time, y, x = (position[..., i : i + 1] for i in range(3))
    w = frequencies(width // 4, 10000.0, position.dtype)
    space = [jnp.sin(x * w), jnp.cos(x * w), jnp.sin(y * w), jnp.cos(y * w)]
    w = frequencies(width // 2, 10000.0, position.dtype)
    frame = [jnp.sin(time * w), jnp.cos(time * w) - 1]
    return jnp.concatenate(space, axis=-1) + jnp.concatenate(frame, axis=-1)


def default_axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, y and x: a third each; the remainder goes to time."""
    side = 2 * (head_dim // 6)
    return (head_dim - 2 * side, side, side)


def check_axes(axes: tuple[int, ...], head_dim: int) -> None:
    """Raise UserError unless ``axes`` are three even numbers that make up ``head_dim``."""
    if len(axes) != 3 or any(a % 2 or a < 0 for a in axes) or sum(axes) != head_dim:
        raise UserError(
            f"got rope_axes={tuple(axes)} for heads of {head_dim} channels; expected three even "
            f"numbers (time, y, x) with sum {head_dim}, as {default_axes(head_dim)}"
        )


def rotary(
    position: Float[Array, "b n _"], axes: tuple[int, ...], theta: float = 10000.0
) -> Rotary:
    """Cosines and sines of the angles of every token, half as many as a head has channels.

    Axis ``a`` owns ``axes[a]`` channels, turned by ``position[a] * theta^(-2 i / axes[a])`` (Su et
    al. 2021, section 3.4, an axis at a time).
    """
    angles = [
        position[..., a : a + 1] * frequencies(size // 2, theta, position.dtype)
        for a, size in enumerate(axes)
    ]
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def spanning(
    share: Float[Array, "b n 3"], heads: int, head_dim: int, theta: float = 10000.0
) -> Rotary:
    """Angles of every head's own, by a token's ``share`` of the span of each axis (LTX-Video).

    The ``w = heads * head_dim`` channels of all heads are pairs of ``w // 6`` frequencies from
    ``pi / 2`` to ``theta pi / 2``, equally far apart in their logarithm, each for time, y and x. The
    pairs turn by ``2 share - 1`` times that; those left over come first and do not turn. Angles are as
    large as 1e4, so that rounding shows: frequencies are rounded to float32 at every operation, as by
    the published code.
    """
    count, theta = heads * head_dim // 6, np.float32(theta)
    i, last = np.arange(count, dtype=np.float32), np.float32(max(count - 1, 1))
    exponent = np.where(2 * i < count - count % 2, i * (1 / last), 1 - (last - i) * (1 / last))
    power = (theta.astype(np.float64) ** exponent.astype(np.float32)).astype(np.float32)
    w = jnp.asarray(power * np.float32(np.pi) / np.float32(2), share.dtype)
    angle = (2 * share - 1)[:, :, None, :] * w[None, None, :, None]  # b n count 3
    angle = angle.reshape(*share.shape[:2], -1)
    left = heads * head_dim // 2 - angle.shape[-1]
    angle = jnp.pad(angle, ((0, 0), (0, 0), (left, 0)))
    angle = angle.reshape(*share.shape[:2], heads, head_dim // 2)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "b n h d"], table: Rotary) -> Float[Array, "b n h d"]:
    """Turn channel ``i`` with channel ``i + d / 2`` of every head by the token's ``i``-th angle.

    Then ``<rotate(q, p), rotate(k, p')>`` depends on ``p - p'`` only. Weights made for neighbouring
    channels ``(2 i, 2 i + 1)`` need a permutation of the channels of q and k.

    Halves of a head fill half the lanes of a TPU's registers, so there no head is cut: its halves change
    places in a product with a permutation, which is exact.
    """
    cos, sin = (part if part.ndim == 4 else part[:, :, None, :] for part in table)
    wide = x.astype(jnp.promote_types(x.dtype, cos.dtype))
    if platform() == "tpu":
        cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
        y = (wide * cos + _swapped(wide, x.dtype) * sin).astype(x.dtype)
        return constrain(y, *WHOLE_HEADS)  # what is exchanged between devices is short again
    a, b = jnp.split(wide, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _swapped(x: Float[Array, "b n h d"], exact: Any) -> Float[Array, "b n h d"]:
    """The second half of every head before the first. ``exact``: a type that holds the numbers of x.

    Its own rule of differentiation hides the product from the policies of ``remat`` that keep products,
    and has the derivative, which no short type holds, as wide as it comes.
    """
    return _swap(x.astype(exact), x.dtype)


@_swapped.defjvp
def _(exact, x, tangents):
    return _swapped(*x, exact), _swap(*tangents)


def _swap(x: Float[Array, "b n h d"], out: Any = None) -> Float[Array, "b n h d"]:
    d = x.shape[-1]
    halves = np.roll(np.eye(d), d // 2, axis=-1).astype(x.dtype)
    how = {"precision": lax.Precision.HIGHEST, "preferred_element_type": out}
    return jnp.einsum("bnhd,de->bnhe", x, halves, **how)
