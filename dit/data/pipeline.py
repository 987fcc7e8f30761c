"""Batches from a split, on Grain, with a position that can be saved and resumed exactly.

The stream of a split of ``n`` examples is an infinite sequence: position ``p = e n + k`` is the
``k``-th example of epoch ``e``, and each epoch is a fresh permutation that depends on (seed, e)
alone. Batch ``g`` after ``start`` holds positions ``start + g B .. start + (g + 1) B - 1``; a process
that needs only some of its rows makes only those. So the whole state is *one global index*, and a
run may resume with another number of processes, workers or another batch size. Positions are the
examples' ``id``, two words each (``rng.words``): they key the noise and the augmentations.

Where examples have several shapes, each batch has one of them: ``plan`` says which, and which examples
make it up. The state is still one index, but it can only be resumed with the same batch size.
``packing`` puts examples of all shapes into rows of tokens instead.

A batch holds every key of its examples, stacked: ``x``, and ``label`` where the data have labels.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np

from dit import rng
from dit.data.captions import Tokenized
from dit.data.follow import follow
from dit.data.plan import Batching, Plan, shuffled
from dit.data.source import (
    STREAM_LENGTH,
    Example,
    Split,
    Transform,
    bucket_sizes,
    bucket_weights,
    generator,
)
from dit.types import UserError

# x (b, f, h, w, c), id uint32 (b, 2), and what else the examples have
Batch = dict[str, np.ndarray]
log = logging.getLogger(__name__)

RETRIES = 3  # how often a batch is tried when workers are killed
State = dict[str, int | str]
Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]


class Rows(NamedTuple):
    """Examples of one bucket: their ``places`` in its stream, and ``positions`` in the whole stream."""

    bucket: int
    places: Sequence[int]
    positions: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Stream:
    """The examples at given places: shuffled, read and transformed, pure in (seed, place, position)."""

    split: Split
    sizes: tuple[int, ...]
    seed: int
    shuffle: bool
    transforms: tuple[Transform, ...]

    def __call__(self, rows: Rows) -> list[Example]:
        start, length = sum(self.sizes[: rows.bucket]), self.sizes[rows.bucket]
        examples = []
        for place, position in zip(rows.places, rows.positions, strict=True):
            epoch, k = divmod(place, length)
            if self.shuffle and not self.split.streaming:
                k = shuffled(self.seed, epoch, k, length, rows.bucket)
            example = self._read(start + k, position)
            if self.transforms:
                own = generator(self.seed, "transforms", position)
                for transform in self.transforms:
                    example = transform(example, own)
            examples.append(example)
        return examples

    def _read(self, i: int, position: int) -> Example:
        """Example ``i``, with a caption chosen by its position where it has several."""
        if isinstance(self.split, Tokenized):
            return self.split.read(i, generator(self.seed, "captions", position))
        return {k: v for k, v in self.split[i].items() if k != "caption"}


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Makes the batch of given rows with ``threads`` threads (0: in the thread that calls).

    All batches that are under way in a process share these threads.
    """

    stream: Stream
    threads: int = 0

    def __call__(self, rows: Rows) -> Batch:
        bucket, places, positions = rows
        if not self.threads:
            return stacked(self.stream(rows), positions)
        share = -(-len(positions) // self.threads)
        slices = [slice(i, i + share) for i in range(0, len(positions), share)]
        shares = [Rows(bucket, places[part], positions[part]) for part in slices]
        parts = pool(self.threads).map(self.stream, shares)
        return stacked([example for part in parts for example in part], positions)


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "dit-data")


def stacked(examples: Sequence[Example], positions: Sequence[int]) -> Batch:
    """The batch of ``examples``, with their ``positions`` as ``id``; UserError if they are not alike."""
    kinds = [{k: (np.shape(v), np.asarray(v).dtype) for k, v in e.items()} for e in examples]
    for kind, position in zip(kinds, positions, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"the example at position {position} of the data has {_show(kind)}, that at position "
                f"{positions[0]} {_show(kinds[0])}; expected the same of all examples"
            )
    columns = {k: [e[k] for e in examples] for k in examples[0]}
    batch = {
        k: np.array(v, np.int32) if isinstance(v[0], int) else np.stack(v)
        for k, v in columns.items()
    }
    return {**batch, "id": rng.words(positions)}


def _show(kind: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{k} {dtype} {shape}" for k, (shape, dtype) in kind.items())


@dataclasses.dataclass(frozen=True)
class _Mine:
    """The rows of the ``g``-th batch that this process makes."""

    plan: Plan
    start: int
    rows: Sequence[int]

    def __call__(self, g: int) -> Rows:
        position = self.start + g * self.plan.batch
        bucket, first = self.plan(position)
        places, positions = ([at + row for row in self.rows] for at in (first, position))
        return Rows(bucket, places, positions)


class Batches(Iterator[Batch]):
    """An iterator over batches with ``get_state``, ``set_state`` and ``close``; see ``batches``."""

    def __init__(self, stream: Stream, plan: Batching, *, start, workers, threads, prefetch):
        plan.check(start)
        self.stream, self.plan, self._position = stream, plan, start
        self._workers, self._threads, self._prefetch = workers, threads, prefetch
        self._rows: Sequence[int] = range(plan.batch)
        self._shapes: dict[int, Shapes] = {}
        self._iterator = None

    def __next__(self) -> Batch:
        for _ in range(RETRIES):
            if self._iterator is None:
                self._iterator = self._open()
            try:
                batch = next(self._iterator)
            except RuntimeError as error:
                if "Worker process was terminated" not in str(error):
                    raise
                log.warning("a process that reads data was killed: new ones are started")
                self.close()
                continue
            self._position = self.plan.after(self._position)
            return batch
        raise UserError(
            f"the processes that read data were killed {RETRIES} times at position {self._position}: "
            "out of memory? Lower loader.workers, loader.threads or loader.prefetch"
        )

    @property
    def batch_size(self) -> int:
        """The rows of a batch of all processes together."""
        return self.plan.batch

    @property
    def examples(self) -> int | float:
        """The examples of a batch; their mean, where that is not one number."""
        return self.batch_size

    @property
    def unpacked(self) -> Batches:
        """The same examples as they are, in batches of one shape each."""
        return self

    @property
    def bucket(self) -> int:
        """The bucket of the next batch."""
        return self.plan(self._position).bucket

    def coming(self, batches: int = 0) -> list[int]:
        """All buckets with examples, in the order in which the next ``batches`` first use them."""
        return self.plan.coming(self._position, batches)

    @property
    def endless(self) -> bool:
        """Whether no example comes twice, because examples are made or augmented on demand."""
        return self.stream.split.streaming or bool(self.stream.transforms)

    def look(self, places: Sequence[int], bucket: int = 0) -> Batch:
        """The examples at these places of a bucket's stream; the position does not change."""
        return _Batch(self.stream)(Rows(bucket, places, places))

    def take_rows(self, rows: Sequence[int]) -> None:
        """Make only these rows of every batch from now on: those that this process is to hold."""
        if not rows or min(rows) < 0 or max(rows) >= self.batch_size:
            raise UserError(f"got rows {rows}; expected some of 0 .. {self.batch_size - 1}")
        self.close()
        self._rows = rows

    def shapes(self, bucket: int = 0) -> Shapes:
        """``{name: (shape, dtype)}`` of a whole batch of a bucket, read off one example."""
        if bucket not in self._shapes:
            here, first = self.plan(self._position)
            one = self.look([first if here == bucket else 0], bucket)
            found = {name: ((self.batch_size, *x.shape[1:]), x.dtype) for name, x in one.items()}
            self._shapes[bucket] = found
        return self._shapes[bucket]

    @property
    def fingerprint(self) -> str:
        """Identifies the data and, where the meaning of a position depends on it, the batch size."""
        several = f" in batches of {self.batch_size}" if len(self.plan.sizes) > 1 else ""
        return self.stream.split.fingerprint + several

    def get_state(self) -> State:
        """Where the *next* batch starts and in which data, as a small JSON-able dict."""
        return {"position": self._position, "fingerprint": self.fingerprint}

    def set_state(self, state: Any) -> None:
        """Go on from a saved state. Raises UserError for other data or an impossible position."""
        known = self.fingerprint
        if not isinstance(state, dict) or {"position", "fingerprint"} - set(state):
            raise UserError(f"got data state {state!r}; expected a position and a fingerprint")
        if state["fingerprint"] != known:
            raise UserError(
                f"the saved position belongs to the data {state['fingerprint']!r}, but this run "
                f"reads {known!r}: use the data section of the config that made the checkpoint"
            )
        self.plan.check(state["position"])
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """Stop the threads and workers that read ahead. The next batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _mine(self) -> Callable[[int], Any]:
        """What says which examples the ``g``-th batch from here has in this process."""
        return _Mine(self.plan, self._position, self._rows)

    def _make(self, threads: int) -> Callable[[Any], Batch]:
        """What makes a whole batch of them."""
        return _Batch(self.stream, threads)

    def _open(self) -> Iterator[Batch]:
        steps = (STREAM_LENGTH - self._position) // self.batch_size
        dataset = grain.MapDataset.range(steps).map(self._mine()).map(self._make(self._threads))
        options = grain.ReadOptions(num_threads=self._prefetch, prefetch_buffer_size=self._prefetch)
        if not self._workers:
            return iter(dataset.to_iter_dataset(options))
        _parse_flags()
        processes = grain.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=max(1, self._prefetch)
        )
        return iter(dataset.to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(processes, follow))


def batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    start: int = 0,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
    transforms: Sequence[Transform] = (),
) -> Batches:
    """Endless batches of ``split`` from position ``start``, resumable through get/set_state.

    ``batch_size`` counts the rows of all processes; ``take_rows`` says which to make here, all by
    default. The examples are read by this process, or by ``workers`` processes if that is not 0. Each
    of them reads ``prefetch`` batches ahead (0: none), with ``threads`` threads. The batches are the
    same whatever these numbers. ``transforms`` follow the split's own. Raises UserError for a bad
    argument.
    """
    if len(split) < 1:
        raise UserError("the data are empty; expected at least one example")
    if batch_size < 1:
        raise UserError(f"got batch_size={batch_size}; expected 1 or more")
    if workers < 0 or prefetch < 0 or threads < 1:
        raise UserError(
            f"got workers={workers}, prefetch={prefetch}, threads={threads}; expected 0 or more "
            "workers and batches ahead, and 1 or more threads"
        )
    generator(seed, "shuffle", 0)  # refuses a seed out of range now and not in a reading thread
    sizes = bucket_sizes(split)
    return Batches(
        Stream(split, sizes, seed, shuffle, (*split.transforms, *transforms)),
        Plan(bucket_weights(split), batch_size, seed),
        start=start,
        workers=workers,
        threads=threads,
        prefetch=prefetch,
    )


def eval_batches(split: Split, *, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """One pass in order over the first ``limit`` examples, every batch full and of one bucket.

    The last batch of a bucket repeats its last example; ``mask`` (bool, ``(b,)``) is false on repeats.
    With several buckets, each gets its share of ``limit``.
    """
    if batch_size < 1:
        raise UserError(f"got batch_size={batch_size}; expected 1 or more")
    sizes, start = bucket_sizes(split), 0
    total = sum(sizes) if limit is None else min(limit, sum(sizes))
    make = _Batch(Stream(split, sizes, 0, False, ()))
    for bucket, length in enumerate(Plan(sizes, batch_size, 0).counts(total)):
        for first in range(0, length, batch_size):
            places = np.arange(first, first + batch_size)
            kept = [min(int(i), length - 1) for i in places]
            batch = make(Rows(bucket, kept, [start + i for i in kept]))
            yield batch | {"mask": places < length}
        start += sizes[bucket]


def _parse_flags() -> None:
    """Grain's workers read absl flags, which only ``app.run`` parses: do it where nobody did."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
