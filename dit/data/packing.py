"""Examples of all shapes in rows of a fixed number of tokens: one compiled shape, little padding.

The examples come in one order, that of ``plan`` for batches of one: of any 64 each bucket has its share,
and each comes once in an epoch of its bucket. A batch that begins at position ``p`` of this order takes
as many of the following examples as its rows hold, and the next batch begins after them. So which
examples it has, and in which row each lies, follow from ``p`` alone: the whole state is this one number,
and neither the processes nor what reads the data changes anything.

They are packed by *first-fit decreasing* (Johnson 1973): the largest first, each into the first row with
room. The run of examples is the longest whose tokens are no more than there is room for, less those at
its end without which it can be packed so.

A batch has ``x``, ``b n p``: of each row the patches of its examples, one (a *segment*) after the
other, and then zeros; ``grid``, ``b s 3``: how many patches each has along time, y and x; ``weight``,
``b s``: of its loss, zero for no example, of mean 1; and with ``b s`` in front ``id`` and all else that
examples have. ``grid`` says in 12 bytes an example what segment and position every token has
(``objectives.packed.layout``). How tokens become patches is as in ``models.patchify``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from dit.data.pipeline import Batch, Batches, Rows, Shapes, Stream, batches, pool, stacked
from dit.data.plan import BLOCK, Plan, Turn
from dit.data.source import Shape, Split, bucket_sizes, bucket_weights
from dit.types import UserError

Patch = tuple[int, int, int]


class Item(NamedTuple):
    """An example: its bucket, its place in that bucket's stream, and its position in the whole."""

    bucket: int
    place: int
    position: int


class Packed(NamedTuple):
    """A batch: the examples of every row, how many they are, and those of them that are made here."""

    rows: tuple[tuple[Item, ...], ...]
    count: int
    mine: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Packing:
    """How examples fill ``batch`` rows of ``length`` tokens, at most ``most`` in each.

    ``order``: the plan of batches of one example; ``tokens``: of an example of each bucket.
    """

    order: Plan
    tokens: tuple[int, ...]
    batch: int
    length: int
    most: int

    def __call__(self, position: int) -> Packed:
        """The batch that begins at ``position``, counted in examples."""
        return _packed(self, position)

    def after(self, position: int) -> int:
        """Where it ends."""
        return position + self(position).count

    def check(self, position: Any) -> None:
        """Raise UserError for what is no position."""
        self.order.check(position)


@functools.lru_cache(maxsize=64)
def _packed(plan: Packing, position: int) -> Packed:
    items, room = [], plan.batch * plan.length
    while room >= 0 and len(items) <= plan.batch * plan.most:
        at = position + len(items)
        turn = _turns(plan.order, at // BLOCK)[at % BLOCK]
        items.append(Item(turn.bucket, turn.first, at))
        room -= plan.tokens[turn.bucket]
    items.pop()
    while (rows := first_fit_decreasing(plan, items)) is None:
        items.pop()
    return Packed(rows, len(items), range(plan.batch))


@functools.lru_cache(maxsize=256)
def _turns(order: Plan, block: int) -> list[Turn]:
    return [order(position) for position in range(block * BLOCK, (block + 1) * BLOCK)]


def first_fit_decreasing(
    plan: Packing, items: Sequence[Item]
) -> tuple[tuple[Item, ...], ...] | None:
    """The items in rows; None where they do not fit. Those of one size stay in their order."""
    by_size: dict[int, list[Item]] = {}
    for item in items:
        by_size.setdefault(plan.tokens[item.bucket], []).append(item)
    left, free = np.full(plan.batch, plan.length), np.full(plan.batch, plan.most)
    rows: list[list[Item]] = [[] for _ in range(plan.batch)]
    for size, alike in sorted(by_size.items(), reverse=True):
        fit = np.minimum(left // size, free)
        taken = np.clip(len(alike) - (np.cumsum(fit) - fit), 0, fit)
        if taken.sum() < len(alike):
            return None
        ends = np.cumsum(taken)
        for row in np.flatnonzero(taken):
            rows[row] += alike[ends[row] - taken[row] : ends[row]]
        left, free = left - taken * size, free - taken
    return tuple(map(tuple, rows))


class _Cut:
    """The ``g``-th batch from ``start``: they are cut off the stream one after the other, and noted."""

    def __init__(self, plan: Packing, start: int, rows: Sequence[int]):
        self._plan, self._rows = plan, rows
        self._begins, self._lock = array("Q", [start]), threading.Lock()

    def __reduce__(self):
        return _Cut, (self._plan, self._begins[0], self._rows)

    def __call__(self, g: int) -> Packed:
        with self._lock:
            while len(self._begins) <= g:
                self._begins.append(self._plan.after(self._begins[-1]))
            begin = self._begins[g]
        return self._plan(begin)._replace(mine=self._rows)


@dataclasses.dataclass(frozen=True)
class _PackedBatch:
    """Makes the rows of a batch that are wanted here, with ``threads`` threads (0: none)."""

    stream: Stream
    plan: Packing
    shapes: tuple[Shape, ...]
    patch: Patch
    threads: int = 0

    def __call__(self, packed: Packed) -> Batch:
        plan, mine = self.plan, packed.mine
        places = [(r, s) for r, row in enumerate(mine) for s in range(len(packed.rows[row]))]
        items = [item for row in mine for item in packed.rows[row]]
        read = map if not self.threads else pool(self.threads).map
        examples = list(read(self._read, items))
        rest = [{k: v for k, v in e.items() if k != "x"} for e in examples]
        there, slots = tuple(np.array(places).T), (len(mine), plan.most)
        out = {}
        for name, values in stacked(rest, [item.position for item in items]).items():
            out[name] = np.zeros((*slots, *values.shape[1:]), values.dtype)
            out[name][there] = values
        out["weight"] = np.zeros(slots, np.float32)
        out["weight"][there] = plan.batch * plan.most / packed.count
        out["grid"] = np.zeros((*slots, 3), np.int32)
        out["grid"][there] = [grid_of(self.shapes[item.bucket], self.patch) for item in items]
        first = examples[0]["x"]
        width = math.prod(self.patch) * first.shape[-1]
        out["x"] = np.zeros((len(mine), plan.length, width), first.dtype)
        filled = [0] * len(mine)
        for (row, _), item, example in zip(places, items, examples, strict=True):
            x = example["x"]
            if x.shape != self.shapes[item.bucket] or x.dtype != first.dtype:
                raise UserError(
                    f"the example at position {item.position} of the data has x {x.dtype} {x.shape}; "
                    f"expected {first.dtype} {self.shapes[item.bucket]}"
                )
            patches = patched(x, self.patch)
            out["x"][row, filled[row] : filled[row] + len(patches)] = patches
            filled[row] += len(patches)
        return out

    def _read(self, item: Item) -> dict[str, Any]:
        return self.stream(Rows(item.bucket, [item.place], [item.position]))[0]


def patched(x: np.ndarray, patch: Patch) -> np.ndarray:
    """``f h w c`` as ``n p``, time-major patches with channels last."""
    t, h, w = patch
    return rearrange(x, "(f t) (y h) (x w) c -> (f y x) (t h w c)", t=t, h=h, w=w)


def grid_of(shape: Shape, patch: Patch) -> tuple[int, int, int]:
    """How many patches an example has along time, y and x; UserError where they do not divide it."""
    if any(size % p for size, p in zip(shape, patch, strict=False)):
        raise UserError(
            f"got examples of shape {shape}, which patches of {patch} do not divide; expected a "
            "model.patch that divides all shapes of the data"
        )
    return tuple(size // p for size, p in zip(shape, patch, strict=False))


class PackedBatches(Batches):
    """See ``packed_batches``: as ``Batches``, all of one bucket, and ``batch_size`` counts rows."""

    plan: Packing

    def __init__(
        self, plain: Batches, shapes: tuple[Shape, ...], patch: Patch, plan: Packing, **how: int
    ):
        super().__init__(plain.stream, plan, **how)
        self._plain, self._of, self._patch = plain, shapes, patch

    @property
    def examples(self) -> float:
        """Those of a mean batch, if none of it were padding."""
        mean = sum(map(math.prod, zip(self.plan.order.shares, self.plan.tokens, strict=True)))
        return self.plan.batch * self.plan.length / mean

    @property
    def unpacked(self) -> Batches:
        """The same examples, one at a time."""
        return self._plain

    @property
    def bucket(self) -> int:
        """Rows hold examples of all buckets: to what compiles steps they are one."""
        return 0

    def coming(self, batches: int = 0) -> list[int]:
        """That one."""
        return [0]

    def shapes(self, bucket: int = 0) -> Shapes:
        """``{name: (shape, dtype)}`` of a whole batch, read off the examples of one row."""
        if not self._shapes:
            one = self._make(0)(self.plan(self._position)._replace(mine=[0]))
            rows = self.batch_size
            self._shapes[0] = {k: ((rows, *x.shape[1:]), x.dtype) for k, x in one.items()}
        return self._shapes[0]

    @property
    def fingerprint(self) -> str:
        """Of the data in this order, which depends neither on the rows nor on their length."""
        return f"{self.stream.split.fingerprint} one by one"

    def _mine(self) -> Callable[[int], Packed]:
        return _Cut(self.plan, self._position, self._rows)

    def _make(self, threads: int) -> Callable[[Packed], Batch]:
        return _PackedBatch(self.stream, self.plan, self._of, self._patch, threads)


def packed_batches(
    split: Split,
    shapes: Sequence[Shape],
    *,
    patch: Patch,
    tokens: int,
    most: int | None = None,
    rows: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
) -> PackedBatches:
    """Endless batches of ``rows`` rows of ``tokens`` tokens, resumable as ``pipeline.batches`` are.

    ``shapes``: of an example of each bucket; ``patch``: the frames, height and width of a token.
    ``most``: examples in a row at most, by default as many as there can be. The rest is as for
    ``pipeline.batches``. Raises UserError for examples with more tokens than a row.
    """
    plain = batches(
        split, batch_size=1, seed=seed, workers=workers, threads=threads, prefetch=prefetch
    )
    sizes = tuple(math.prod(grid_of(shape, patch)) for shape in shapes)
    used = [i for i, count in enumerate(bucket_sizes(split)) if count]
    largest = max(used, key=lambda i: sizes[i])
    if sizes[largest] > tokens:
        raise UserError(
            f"got packing.tokens={tokens} and examples of {shapes[largest]} with {sizes[largest]} "
            "tokens each; expected rows that hold the largest example"
        )
    most = most or tokens // min(sizes[i] for i in used)
    plan = Packing(Plan(bucket_weights(split), 1, seed), sizes, rows, tokens, most)
    how = {"start": start, "workers": workers, "threads": threads, "prefetch": prefetch}
    return PackedBatches(plain, tuple(map(tuple, shapes)), patch, plan, **how)
