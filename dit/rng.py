"""Randomness as a function of (seed, stream name, step, sample index), and of nothing else.

The noise that ``normal(keys, shape)`` draws for sample ``i`` has the same bits whatever the batch
size, the mesh or the number of hosts, because each sample owns a key. This holds for Threefry but not
for JAX's other generators (``rbg``). So ``root`` makes every key, whatever JAX's default is, and keys
of another generator are refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Int

from dit.types import Ids, Key, UserError

IMPLEMENTATION = "threefry2x32"
SEEDS = 2**32  # data, shuffling and noise take the same seeds


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise UserError unless ``0 <= seed < 2**32``: JAX silently drops higher bits."""
    if isinstance(seed, bool) or not 0 <= seed < SEEDS:
        raise UserError(f"got {name}={seed!r}; expected a whole number from 0 to {SEEDS - 1}")


def root(seed: int) -> Key:
    """The key of a seed, from which all others follow; UserError for one out of range."""
    check_seed(seed)
    return jax.random.key(seed, impl=IMPLEMENTATION)


def check_key(key: Key) -> None:
    """Raise UserError for anything but a typed key, and for keys whose draws depend on the batch."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise UserError(
            f"got a key of dtype {key.dtype} and shape {key.shape}; expected a typed key: "
            "dit.rng.root(seed), or jax.random.wrap_key_data(...) around an old one"
        )
    found = str(jax.random.key_impl(key))
    if found != IMPLEMENTATION:
        raise UserError(
            f"got a key of generator {found!r}, whose draws depend on the batch; expected "
            f"{IMPLEMENTATION!r}: make it by dit.rng.root(seed)"
        )


ROUNDS = 24  # of a permutation: each halves what is left of the order


def stream(key: Key, name: str, step: int | Int[Array, ""] | None = None) -> Key:
    """The key of the named stream at ``step`` (any integer array scalar; None for a one-off)."""
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


def words(ids: Sequence[int]) -> np.ndarray:
    """Indices below 2**64 as uint32 ``(b, 2)``, the high word first: JAX's integers have 32 bits."""
    wide = np.array(ids, np.uint64)
    return np.stack([wide >> np.uint64(32), wide & np.uint64(2**32 - 1)], -1).astype(np.uint32)


def per_sample(key: Key, ids: Ids) -> Key:
    """One key a sample, shape ``(b,)``, from the samples' own indices; UserError for a bad key.

    An index is one 32-bit number, or two ``words``. Below 2**32 the key is that of
    ``jax.random.fold_in``; above, it is what ``fold_in`` would give if it took wider numbers.
    """
    check_key(key)
    if ids.ndim == 1:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
    data = jax.random.key_data(key)
    folded = jax.vmap(lambda count: threefry_2x32(data, count))(ids)
    return jax.random.wrap_key_data(folded, impl=IMPLEMENTATION)


def normal(keys: Key, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """Unit Gaussian noise ``(b, *shape)`` from ``(b,)`` keys."""
    return jax.vmap(lambda k: jax.random.normal(k, tuple(shape), dtype))(keys)


def normal_at(keys: Key, index: Int[Array, "*b k"]) -> Array:
    """Elements ``index`` of the noise that ``normal`` draws by the same keys ``(*b,)``, bit for bit.

    For examples that lie in pieces, where ``index`` counts in the flattened sample, whatever its shape:
    a draw depends on its key and on this number alone (JAX's partitionable Threefry). Float32.
    """
    counts = jnp.concatenate([jnp.zeros_like(index), index], axis=-1).astype(jnp.uint32)
    draw = threefry_2x32
    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    high, low = jnp.split(draw(jax.random.key_data(keys), counts), 2, axis=-1)
    fraction = (high ^ low) >> 9 | jnp.uint32(0x3F800000)  # of a float32 in [1, 2)
    unit = jax.lax.bitcast_convert_type(fraction, jnp.float32) - 1
    least = np.nextafter(np.float32(-1), np.float32(0))
    u = jnp.maximum(least, unit * (np.float32(1) - least) + least)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(u)


def uniform(keys: Key, shape: Sequence[int] = (), dtype=jnp.float32) -> Array:
    """Uniform ``[0, 1)`` numbers ``(b, *shape)`` from ``(b,)`` keys."""
    return jax.vmap(lambda k: jax.random.uniform(k, tuple(shape), dtype))(keys)


def permuted(key: Key, index: Int[Array, ""], n: int) -> Int[Array, ""]:
    """Where ``index`` goes in a random permutation of ``0 .. n - 1``, without making all of it.

    Swap-or-not (Hoang, Morris & Rogaway 2012, figure 1): each round pairs every index with one other
    and swaps the pair on the toss of a coin that belongs to the pair.
    """

    def swap_or_not(index, key):
        other = (jax.random.randint(key, (), 0, n) - index) % n
        coin = jax.random.bits(jax.random.fold_in(key, jnp.maximum(index, other)), dtype="uint8")
        return jnp.where(coin % 2 == 1, other, index), None

    return jax.lax.scan(swap_or_not, index.astype(jnp.int32), jax.random.split(key, ROUNDS))[0]
