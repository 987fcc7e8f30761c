"""Cut a video into 3-D patches and put it together again; an image is a video with one frame."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from dit.types import UserError, Video

Patch = tuple[int, int, int]  # frames, height, width


def as_patch(patch: int | Patch) -> Patch:
    """``p`` means ``(1, p, p)``; raises UserError for anything but three positive sizes."""
    patch = (1, patch, patch) if isinstance(patch, int) else tuple(patch)
    if len(patch) != 3 or any(p < 1 for p in patch):
        raise UserError(
            f"got patch={patch}; expected one positive size p for (1, p, p), or three of them: "
            "frames, height, width"
        )
    return patch


def grid(shape: tuple[int, ...], patch: Patch) -> tuple[int, int, int]:
    """How many patches a clip ``(f, h, w)`` makes along each axis.

    Raises UserError if the patch does not divide the clip.
    """
    if any(s % p for s, p in zip(shape, patch, strict=True)):
        raise UserError(
            f"a clip of {shape[0]} frames of {shape[1]}x{shape[2]} cannot be cut into patches of "
            f"{patch[0]} frames of {patch[1]}x{patch[2]}; choose a patch that divides it, or pad"
        )
    return tuple(s // p for s, p in zip(shape, patch, strict=True))


def patchify(x: Video, patch: Patch) -> Float[Array, "b n p"]:
    """``b f h w c`` to one row a patch: time-major tokens, pixels within a patch channels-last."""
    grid(x.shape[1:4], patch)
    pt, ph, pw = patch
    return rearrange(x, "b (f pt) (h ph) (w pw) c -> b (f h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: Float[Array, "b n p"], patch: Patch, shape: tuple[int, ...]) -> Video:
    """The inverse of ``patchify`` for a clip of ``shape = (f, h, w)``, whatever its channels."""
    f, h, _ = grid(shape, patch)
    pt, ph, pw = patch
    return rearrange(
        tokens,
        "b (f h w) (pt ph pw c) -> b (f pt) (h ph) (w pw) c",
        f=f,
        h=h,
        pt=pt,
        ph=ph,
        pw=pw,
    )


def levels(t: Float[Array, "..."], shape: tuple[int, ...], patch: Patch) -> Float[Array, "b k"]:
    """Times of samples or frames as they are, and times of pixels as times of tokens.

    ``shape``: ``(b, f, h, w)`` of the pixels. A token has the time of its first pixel; all pixels of a
    patch should have the same.
    """
    if t.ndim > 2:
        whole = jnp.broadcast_to(t.reshape(t.shape + (1,) * (4 - t.ndim)), shape)
        t = whole[:, :: patch[0], :: patch[1], :: patch[2]]
    return t.reshape(t.shape[0], -1)


def positions(shape: tuple[int, ...], patch: Patch) -> Float[Array, "1 n 3"]:
    """``(time, y, x)`` of every patch of a clip ``(f, h, w)``, counted in patches from zero."""
    axes = [jnp.arange(size, dtype=jnp.float32) for size in grid(shape, patch)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(1, -1, 3)


def positions_at(times: Int[Array, " f"], sides: Sequence[int]) -> Float[Array, "1 n 3"]:
    """``(time, y, x)`` of every patch of frames at these times, ``sides`` patches high and wide."""
    places = positions((len(times), *sides), (1, 1, 1))
    each = jnp.repeat(times.astype(places.dtype), sides[0] * sides[1])
    return places.at[0, :, 0].set(each)
