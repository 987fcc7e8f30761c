"""A causal video autoencoder on a clip in chunks, one after the other: as much memory as one takes.

The first chunk has the clip's first frame and what makes the others equal; these go through one loop,
which carries the last frames that each convolution has seen. The result is that of the whole clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.models.wan_vae import WanVAE
from dit.models.wan_vae_blocks import PAST
from dit.types import Params, Video

Run = Callable[[Any, Array], tuple[Any, Any]]  # (past, chunk) -> (result, past)


def encode(
    model: WanVAE, params: Params, x: Array, chunk: int, see: Callable[[Array], Video]
) -> tuple[Float[Array, "b f2 h2 w2 z"], Float[Array, "b f2 h2 w2 z"]]:
    """Mean and log-variance of the latents, ``chunk`` frames of latents at a time.

    ``see``: from a chunk of ``x``, as it is stored, to what the network sees. Raises UserError for a
    number of frames that no latents have.
    """
    model.check_frames(x.shape[1])
    size = chunk * model.stride

    def run(past: Any, part: Array) -> tuple[Any, Any]:
        return _applied(model, params, past, see(part), "encode")

    return in_chunks(run, x, 1 + (x.shape[1] - 1) % size, size)


def decode(
    model: WanVAE, params: Params, z: Float[Array, "b f h w c"], chunk: int
) -> Float[Array, "b f2 h2 w2 d"]:
    """The clip of latents, ``chunk`` of their frames at a time."""

    def run(past: Any, part: Array) -> tuple[Any, Any]:
        return _applied(model, params, past, part, "decode")

    return in_chunks(run, z, 1 + (z.shape[1] - 1) % chunk, chunk)


def _applied(model: WanVAE, params: Params, past: Any, x: Video, method: str) -> tuple[Any, Any]:
    """One half on a chunk, the first where there is no ``past``; and what the next chunk needs."""
    given = {"params": params} | ({} if past is None else {PAST: past})
    y, kept = model.apply(given, x, first=past is None, mutable=[PAST], method=method)
    return y, kept[PAST]


def in_chunks(run: Run, x: Float[Array, "b f ..."] | Array, head: int, size: int) -> Any:
    """``run`` on the first ``head`` frames, then on ``size`` at a time; the results joined in time."""
    first, past = run(None, x[:, :head])
    if x.shape[1] == head:
        return first
    rest = x[:, head:].reshape(len(x), -1, size, *x.shape[2:]).swapaxes(0, 1)
    _, found = jax.lax.scan(lambda past, part: run(past, part)[::-1], past, rest)

    def joined(one: Array, many: Array) -> Array:
        many = many.swapaxes(0, 1)
        return jnp.concatenate([one, many.reshape(len(x), -1, *many.shape[3:])], axis=1)

    return jax.tree.map(joined, first, found)
