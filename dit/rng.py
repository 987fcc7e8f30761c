"""Randomness as a function of (seed, stream name, step, sample index), and of nothing else.

Noise drawn through ``normal(keys, shape)`` for sample ``i`` is the same bits whatever the batch
size, the mesh or the number of hosts, because each sample owns a key.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dit.types import Key


def stream(key: Key, name: str, step: int | Int[Array, ""] | None = None) -> Key:
    """The key of the named stream at ``step`` (any integer array scalar; None for a one-off)."""
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


def per_sample(key: Key, ids: Int[Array, "b"]) -> Key:
    """One key a sample, shape ``(b,)``, from the samples' own indices."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def normal(keys: Key, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """Unit Gaussian noise ``(b, *shape)`` from ``(b,)`` keys."""
    return jax.vmap(lambda k: jax.random.normal(k, tuple(shape), dtype))(keys)


def uniform(keys: Key, shape: Sequence[int] = (), dtype=jnp.float32) -> Array:
    """Uniform ``[0, 1)`` numbers ``(b, *shape)`` from ``(b,)`` keys."""
    return jax.vmap(lambda k: jax.random.uniform(k, tuple(shape), dtype))(keys)
