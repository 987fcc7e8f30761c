"""Fingerprints of arrays, to detect storage that returns other bits than were written.

Checkpoint libraries restore flipped bits silently. Here every array gets 64 bits: two sums over its
32-bit words, each word first mixed with its index by a bijection of the integers, so that changing any
single word changes the sum. Sums of integers do not depend on their order, so the fingerprint is
computed on the device that holds the array, and is the same on every mesh.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

SEEDS = (0x243F6A88, 0x85A308D3)  # digits of pi: any two numbers would do
PIECE = 2**20  # numbers of a host's array at a time: few shapes to compile, and little memory


def leaf_names(tree: Any) -> list[str]:
    """The path of every array, such as ``params/blocks/mlp/kernel``, in the order of leaves."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def describe(tree: Any) -> dict[str, dict[str, Any]]:
    """``{name: {"shape", "dtype"}}`` for every array, or shape of an array, in a tree."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    }


def fingerprints(tree: Any, rounded: str | None = None) -> dict[str, str]:
    """``{name: sixteen hex digits}`` for every array of a tree.

    ``rounded``: a type that fractions are converted to before.
    """

    def of(leaf):
        fraction = rounded is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return _fingerprint(leaf.astype(rounded) if fraction else leaf)

    # One at a time: simulated devices deadlock if many collectives are in flight.
    words = [np.asarray(jax.device_get(of(leaf))) for leaf in jax.tree.leaves(tree)]
    return {name: w.tobytes().hex() for name, w in zip(leaf_names(tree), words, strict=True)}


class Growing:
    """The fingerprint of an array that a host sees in parts along its first axis, in their order."""

    def __init__(self):
        self._total, self._first = np.zeros(2, np.uint32), 0

    def add(self, part: Any) -> None:
        """The next part."""
        flat = np.asarray(part).reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            self._total += np.asarray(_fingerprint(piece, np.uint32(self._first % 2**32)))
            self._first += piece.size * max(1, piece.dtype.itemsize // 4)

    def digits(self) -> str:
        """Sixteen hex digits: the same as of the whole array."""
        return self._total.tobytes().hex()


def fingerprint_of(parts: Iterable[Any]) -> str:
    """The fingerprint of an array that is given in parts along its first axis, one after the other."""
    found = Growing()
    for part in parts:
        found.add(part)
    return found.digits()


@jax.jit
def of_rows(x: Array) -> UInt32[Array, "b 2"]:
    """The fingerprint of each row of an array, where it lies."""
    return jax.vmap(_fingerprint)(x)


@jax.jit
def _fingerprint(x: Array, first: Any = None) -> UInt32[Array, "2"]:
    """``first``: how many words of the array are before those of ``x``."""
    words = _words(x)
    strides = [math.prod(words.shape[i + 1 :]) % 2**32 for i in range(words.ndim)]
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride)
    index = index if first is None else index + first
    sums = [jnp.sum(_mix(words, _mix(index, np.uint32(seed))), dtype=jnp.uint32) for seed in SEEDS]
    return jnp.stack(sums)


def _words(x: Array) -> UInt32[Array, "..."]:
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    narrow = jnp.uint8 if x.dtype.itemsize == 1 else jnp.uint16
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)


def _mix(x: Any, salt: Any) -> Any:
    """A bijection of 32-bit integers for each salt (the finalizer of MurmurHash3 around an xor)."""
    x = x ^ salt
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
