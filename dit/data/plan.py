"""Which examples make which batch: a pure function of the seed and the position, without replay.

The examples of one shape are a *bucket*, and a batch is of one bucket. Each bucket has an endless
stream of its own: position ``q = e n + k`` of it is the ``k``-th example of its epoch ``e``, and each
epoch is a fresh permutation of its ``n`` examples. Its batches take that stream in order, and what is
left of an epoch is the beginning of the batch that goes on with the next one. So every example comes
exactly once in an epoch of its bucket, whatever the batch size.

Buckets take turns in proportion to their sizes. Of the first ``g`` batches, bucket 0 has

    ``c_0(g) = g - floor(g (N - n_0) / N)``,    N = n_0 + n_1 + ...,

and the rest is shared out among the others in the same way. With each batch one of these counts grows
by 1 and the others stay; none is ever off its exact share by more than the number of buckets. The
``BLOCK`` batches of a block come in a seeded order, and at its end the counts are those of ``c``. So the
epochs of all buckets stay in step, and any batch can be found directly from its number. Where weights
are given in place of the sizes, as by ``data.sources.mixture``, epochs are as long as ever, and the
buckets begin theirs at times of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np

from dit.data.source import STREAM_LENGTH, generator
from dit.types import UserError

BLOCK = 64  # batches that are shuffled together; another number makes another stream
TABLE = 2**16  # below this many examples a permutation is stored


class Turn(NamedTuple):
    """One batch: its ``bucket``, and the ``first`` of its consecutive positions in that stream."""

    bucket: int
    first: int


@runtime_checkable
class Batching(Protocol):
    """A pure plan of what is in the batch that begins at a position, which calling it says.

    ``batch``: the length of its arrays; ``after(position)``: where the next batch begins.
    """

    batch: int

    def after(self, position: int) -> int: ...

    def check(self, position: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How batches of ``batch`` examples are taken from buckets of these ``sizes``, or weights."""

    sizes: tuple[int, ...]
    batch: int
    seed: int

    def __call__(self, position: int) -> Turn:
        """The batch that comes after ``position`` examples, counted over all buckets."""
        if len(self.sizes) == 1:
            return Turn(0, position)
        block, within = divmod(position // self.batch, BLOCK)
        order = self._order(block)
        bucket = int(order[within])
        before = self.counts(block * BLOCK)[bucket] + int((order[:within] == bucket).sum())
        return Turn(bucket, before * self.batch)

    def after(self, position: int) -> int:
        """Where the batch ends that begins at ``position``."""
        return position + self.batch

    @property
    def shares(self) -> list[float]:
        """The fraction of all batches that each bucket has."""
        return [size / sum(self.sizes) for size in self.sizes]

    def counts(self, batches: int) -> list[int]:
        """How many of the first ``batches`` come from each bucket."""
        left, weight, counts = batches, sum(self.sizes), []
        for size in self.sizes[:-1]:
            rest = left * (weight - size) // weight if weight else 0
            counts.append(left - rest)
            left, weight = rest, weight - size
        return [*counts, left]

    def check(self, position: Any) -> None:
        """Raise UserError for a position that no batch begins at."""
        whole = isinstance(position, int) and not isinstance(position, bool)
        if not whole or not 0 <= position < STREAM_LENGTH:
            raise UserError(
                f"got data position {position!r}; expected a whole number in [0, {STREAM_LENGTH}): "
                "the saved state is damaged"
            )
        if len(self.sizes) > 1 and position % self.batch:
            raise UserError(
                f"got data position {position}; expected a multiple of the batch size, {self.batch}: "
                f"each batch is of one of {len(self.sizes)} shapes"
            )

    def coming(self, position: int, batches: int) -> list[int]:
        """The buckets that have examples, in the order in which the next ``batches`` first use them.

        Buckets that are not used, or not soon, come last.
        """
        if len(self.sizes) == 1:
            return [0]
        ahead = range(position, position + min(batches, 4 * BLOCK) * self.batch, self.batch)
        soon = (self(p).bucket for p in ahead)
        return list(dict.fromkeys(itertools.chain(soon, np.flatnonzero(self.sizes).tolist())))

    def _order(self, block: int) -> np.ndarray:
        return _order(self.sizes, self.batch, self.seed, block)


@functools.lru_cache(maxsize=16)
def _order(sizes: tuple[int, ...], batch: int, seed: int, block: int) -> np.ndarray:
    """The buckets of a block of batches, in a seeded order."""
    plan = Plan(sizes, batch, seed)
    start, end = plan.counts(block * BLOCK), plan.counts((block + 1) * BLOCK)
    each = np.repeat(np.arange(len(sizes)), np.subtract(end, start).astype(np.int64))
    return generator(seed, "buckets", block).permutation(each)


def shuffled(seed: int, epoch: int, k: int, length: int, bucket: int = 0) -> int:
    """Which of ``length`` examples is the ``k``-th of an epoch: a permutation of each epoch's own.

    A large permutation is computed element by element, by a cipher, and not stored. The cipher is
    slow for short ones, so those of fewer than ``TABLE`` elements are drawn whole and stored.
    """
    if length < TABLE:
        return int(_permutation(seed, epoch, length, bucket)[k])
    # Not seed + epoch, with which neighbouring seeds would share their epochs.
    own = _epoch_seed(seed, epoch, bucket)
    return grain.experimental.index_shuffle(k, max_index=length - 1, seed=own, rounds=4)


def _generator(seed: int, epoch: int, bucket: int) -> np.random.Generator:
    return generator(seed, f"shuffle/{bucket}" if bucket else "shuffle", epoch)


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, epoch: int, bucket: int) -> int:
    return int(_generator(seed, epoch, bucket).integers(2**32))


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, length: int, bucket: int) -> np.ndarray:
    return _generator(seed, epoch, bucket).permutation(length)
