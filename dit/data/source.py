"""What a data source is: two splits of examples that can be asked for by number.

An example is ``{"x": array (f, h, w, c), "label": int}`` with ``x`` uint8 in [0, 255] (pixels) or
floating point (latents). Asking twice for example ``i`` gives the same example, so a position in
the data is one integer, and resuming is exact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dit.config import fingerprint
from dit.types import UserError

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]
STREAM_LENGTH = 2**31 - 1  # of a stream without end: positions are int32


@runtime_checkable
class Split(Protocol):
    """Examples by number, with the identity of the data they come from.

    ``streaming``: made from the index on demand, so there are no epochs and nothing to shuffle.
    ``transforms``: the augmentations that belong to this split (``dit.data.transforms``).
    """

    fingerprint: str
    streaming: bool
    transforms: tuple[Transform, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: its training and held-out splits and the shape ``(f, h, w, c)`` of an example.

    ``num_classes`` is None for unlabelled data, whose labels are all 0. ``fingerprint`` changes
    with the options and the content: a checkpoint made with one refuses to go on with another.
    """

    train: Split
    held_out: Split
    shape: tuple[int, int, int, int]
    num_classes: int | None
    fingerprint: str
    streaming: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split held in memory: ``x`` of shape ``(n, f, h, w, c)`` and ``label`` ``(n,)``."""

    x: np.ndarray
    label: np.ndarray
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        return {"x": self.x[i], "label": int(self.label[i])}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """A split of ``length`` examples, each made when it is asked for: ``make(rng, i)``.

    Example ``i`` is a pure function of the seed, the last part of the ``fingerprint`` (``train`` or
    ``held_out``) and ``i``.
    """

    seed: int
    length: int
    fingerprint: str
    streaming: bool = True
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        check_index(i, self.length)
        return self.make(generator(self.seed, self.fingerprint.rsplit("/")[-1], i), i)

    def make(self, rng: np.random.Generator, i: int) -> Example:
        """Example ``i`` from its own random numbers."""
        raise NotImplementedError


def check_index(i: int, length: int) -> None:
    """Raise IndexError unless ``0 <= i < length``: a negative index is a mistake, not the last one."""
    if not 0 <= i < length:
        raise IndexError(f"got example {i}; expected 0 <= index < {length}")


def identity(name: str, **facts) -> str:
    """The fingerprint of a source: its name and twelve hex digits over the JSON-able ``facts``."""
    return f"{name}-{fingerprint(facts)}"


def digest(*arrays: np.ndarray) -> str:
    """Sixteen hex digits over the bytes, shapes and dtypes of ``arrays``."""
    sha = hashlib.sha256()
    for a in arrays:
        sha.update(f"{a.shape}{a.dtype}".encode() + np.ascontiguousarray(a).tobytes())
    return sha.hexdigest()[:16]


def generator(seed: int, name: str, index: int) -> np.random.Generator:
    """Random numbers that are a pure function of the seed, the stream's name and the index."""
    if not 0 <= seed < 2**32:
        raise UserError(f"got seed {seed}; expected 0 <= seed < 2**32")
    key = np.array([zlib.crc32(name.encode()) << 32 | seed, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def stratified(label: np.ndarray, seed: int) -> np.ndarray:
    """All indices in a seeded order in which every prefix holds each class in its proportion.

    Within a class the order is random; an index is placed by its rank relative to the class's size.
    """
    rank = np.empty(len(label))
    for c in np.unique(label):
        members = np.flatnonzero(label == c)
        order = generator(seed, "split", int(c)).permutation(len(members))
        rank[members] = (order + 0.5) / len(members)
    return np.argsort(rank, kind="stable")


def split_rows(label: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and the held-out examples, a fraction ``held_out`` of all.

    Raises UserError unless both keep at least one example.
    """
    count = round(held_out * len(label))
    if not 1 <= count < len(label):
        raise UserError(
            f"got held_out={held_out} of {len(label)} examples, which leaves {count} held out; "
            "expected a fraction that leaves one or more on both sides"
        )
    order = stratified(label, seed)
    return np.sort(order[count:]), np.sort(order[:count])
