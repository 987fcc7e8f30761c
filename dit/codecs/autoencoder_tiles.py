"""Decoding in tiles that overlap: as much memory as one tile takes, however large the picture."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.types import Video

OVERLAP = 4  # tiles overlap by one part in so many


def starts(size: int, tile: int) -> list[int]:
    """Where tiles begin along a side of ``size``: as few as overlap enough, evenly apart."""
    tile = min(tile, size)
    count = -(-(size - tile) // (tile - tile // OVERLAP)) + 1
    return [round(i * (size - tile) / max(count - 1, 1)) for i in range(count)]


def weights(size: int, tile: int, begins: list[int], factor: int) -> np.ndarray:
    """What each tile counts for at each pixel along a side: ``(tiles, tile)``, in pixels.

    A ramp where it overlaps its neighbour, so that the weights of all tiles add up to 1 everywhere.
    """
    tile = min(tile, size)
    raw = np.ones((len(begins), tile * factor))
    pixel = np.arange(tile * factor) + 0.5
    for i in range(len(begins) - 1):
        shared = (begins[i] + tile - begins[i + 1]) * factor
        ramp = np.clip(pixel[:shared] / shared, 0, 1)
        raw[i + 1, :shared] *= ramp
        raw[i, -shared:] *= 1 - ramp
    total = np.zeros(size * factor)
    for i, begin in enumerate(begins):
        total[begin * factor : (begin + tile) * factor] += raw[i]
    return np.stack(
        [raw[i] / total[b * factor : (b + tile) * factor] for i, b in enumerate(begins)]
    ).astype(np.float32)


def decode(
    run: Callable[[Video], Video], z: Float[Array, "b f h w c"], tile: int, factor: int
) -> Float[Array, "b f2 h2 w2 d"]:
    """``run`` on tiles of ``tile`` latents a side, one after the other, blended where they overlap.

    ``factor``: pixels a side that one latent becomes. Inside a tile and away from its edges, the result
    is that of the whole, but for what attention and the norms see of the rest of the picture.
    """
    height, width = z.shape[2:4]
    rows, columns = starts(height, tile), starts(width, tile)
    high, wide = min(tile, height), min(tile, width)
    down, across = (
        jnp.asarray(weights(size, tile, begins, factor))
        for size, begins in ((height, rows), (width, columns))
    )
    places = jnp.array([(i, r, j, c) for i, r in enumerate(rows) for j, c in enumerate(columns)])
    sample = jax.eval_shape(run, z[:, :, :high, :wide])
    whole = jnp.zeros(
        (*sample.shape[:2], height * factor, width * factor, sample.shape[-1]), sample.dtype
    )

    def one(whole, place):
        i, r, j, c = place
        part = jax.lax.dynamic_slice(z, (0, 0, r, c, 0), (*z.shape[:2], high, wide, z.shape[-1]))
        share = down[i].reshape(1, 1, -1, 1, 1) * across[j].reshape(1, 1, 1, -1, 1)
        at = (0, 0, r * factor, c * factor, 0)
        before = jax.lax.dynamic_slice(whole, at, sample.shape)
        return jax.lax.dynamic_update_slice(whole, before + run(part) * share, at), None

    return jax.lax.scan(one, whole, places)[0]
