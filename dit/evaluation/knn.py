"""Nearest neighbours among rows of features, on the devices and block by block.

Queries are shared out over the devices of a mesh and the rows that are searched lie on each, so that a
block of distances is all that is ever in memory beside them. Squared distances are
``|q|^2 + |x|^2 - 2 q x`` of rows less their mean, in float32: what is nearly equal differs by about
``1e-6 |x|^2``.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from dit.parallel.mesh import batch_sharding, batch_shards, replicated

QUERIES, BLOCK = 512, 4096  # rows at a time: of a device, and of those that are searched


def nearest(
    queries: Float[np.ndarray, "n d"],
    rows: Float[np.ndarray, "m d"],
    k: int,
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Squared distances to the ``k`` nearest rows, the nearest first, and which these are."""
    search = functools.partial(_nearest, k=k)
    squares, which = _over(queries, rows, np.zeros(len(rows), np.float32), search, mesh)
    return squares, which


def covered(
    queries: Float[np.ndarray, "n d"],
    rows: Float[np.ndarray, "m d"],
    radius: Float[np.ndarray, " m"],
    mesh: Mesh | None = None,
) -> Bool[np.ndarray, " n"]:
    """Whether each query is in the ball of some row; ``radius`` is squared."""
    (found,) = _over(queries, rows, radius.astype(np.float32), _covered, mesh)
    return found


def _over(queries, rows, radius, search, mesh):
    """``search`` in all rows, for so many queries at a time."""
    centre = rows.mean(0, dtype=np.float64)
    rows, queries = ((x - centre).astype(np.float32) for x in (rows, queries))
    block = min(BLOCK, len(rows))
    short = -len(rows) % block
    rows = np.pad(rows, ((0, short), (0, 0))).reshape(-1, block, rows.shape[1])
    inside = (np.arange(rows.shape[0] * block) < len(radius)).reshape(-1, block)
    radius = np.pad(radius, (0, short)).reshape(-1, block)
    shards = batch_shards(mesh) if mesh else 1
    size = -(-min(QUERIES * shards, len(queries)) // shards) * shards
    whole = replicated(mesh) if mesh else None
    program = jax.jit(search, out_shardings=whole)
    base = [_put(x, whole) for x in (rows, radius, inside)]
    parts = []
    for first in range(0, len(queries), size):
        ids = np.minimum(np.arange(first, first + size), len(queries) - 1)
        found = program(_put(queries[ids], batch_sharding(mesh) if mesh else None), *base)
        parts.append([np.asarray(x)[: len(queries) - first] for x in found])
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def _put(x, where):
    if where is None:
        return jnp.asarray(x)
    return jax.make_array_from_callback(x.shape, where, x.__getitem__)


def _squares(q: Float[Array, "n d"], x: Float[Array, "m d"]) -> Float[Array, "n m"]:
    product = jnp.matmul(q, x.T, precision="highest")
    return jnp.maximum((q**2).sum(1)[:, None] + (x**2).sum(1)[None] - 2 * product, 0.0)


def _nearest(queries, rows, radius, inside, *, k):
    def look(best, part):
        x, there, first = part
        squares = jnp.where(there[None], _squares(queries, x), jnp.inf)
        which = jnp.broadcast_to(
            first + jnp.arange(x.shape[0], dtype=jnp.int32)[None], squares.shape
        )
        squares, which = (
            jnp.concatenate(pair, 1) for pair in zip(best, (squares, which), strict=True)
        )
        least, at = jax.lax.top_k(-squares, k)
        return (-least, jnp.take_along_axis(which, at, 1)), None

    count, block = rows.shape[:2]
    firsts = jnp.arange(count, dtype=jnp.int32) * block
    shape = (len(queries), k)
    start = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    return jax.lax.scan(look, start, (rows, inside, firsts))[0]


def _covered(queries, rows, radius, inside):
    def look(found, part):
        x, r, there = part
        return found | ((_squares(queries, x) <= r[None]) & there[None]).any(1), None

    start = jnp.zeros(len(queries), bool)
    return (jax.lax.scan(look, start, (rows, radius, inside))[0],)
