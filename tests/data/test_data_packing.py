"""Rows of examples: each once in an epoch, whatever reads them, and from any position on."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dit.data import packing
from dit.data.packing import packed_batches, patched
from dit.models.patchify import patchify
from dit.types import UserError

SHAPES = ((1, 4, 4, 1), (1, 4, 6, 1), (1, 6, 4, 1), (2, 4, 4, 1), (3, 4, 4, 1))
COUNTS = (10, 6, 8, 5, 3)  # their sum divides the length of a block
TOTAL = sum(COUNTS)


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered:
    """Example i is filled with i, in the shape of its bucket."""

    bucket_sizes: tuple = COUNTS
    fingerprint: str = "numbered/train"
    streaming: bool = False
    transforms: tuple = ()

    def __len__(self):
        return sum(self.bucket_sizes)

    def __getitem__(self, i):
        bucket = np.searchsorted(np.cumsum(self.bucket_sizes), i, side="right")
        return {"x": np.full(SHAPES[bucket], i, np.uint8), "label": i}


def stream(tokens=18, rows=4, most=None, shapes=SHAPES, split=None, **how):
    given = {"patch": (1, 2, 2), "tokens": tokens, "rows": rows, "most": most, "seed": 3}
    return packed_batches(split or Numbered(), shapes, **given, **how)


def take(batches, count):
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def seen(batches):
    """``(position, example)`` of all examples, in the order of the stream."""
    pairs = []
    for batch in batches:
        there = batch["weight"] > 0
        np.testing.assert_array_equal(there, batch["grid"].prod(-1) > 0)
        assert batch["weight"].mean() == pytest.approx(1)
        pairs += zip(batch["id"][there][:, 1].tolist(), batch["label"][there].tolist(), strict=True)
    return sorted(pairs)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole():
    """More than four epochs."""
    return take(stream(), 20)


@pytest.mark.parametrize("most", [None, 2])
def test_every_example_comes_once_in_an_epoch(most, whole):
    found = seen(whole if most is None else take(stream(most=most), 20))
    assert [position for position, _ in found] == list(range(len(found)))
    assert len(found) > 3 * TOTAL
    for begin in range(0, len(found) - 2 * TOTAL + 1, 2 * TOTAL):  # a block of 64: two epochs
        labels = [label for _, label in found[begin : begin + 2 * TOTAL]]
        assert sorted(labels) == sorted([*range(TOTAL)] * 2)


def test_rows_hold_their_examples_and_little_else(whole):
    """Patches of each example lie together, in the order of the grid, before the padding."""
    for batch in whole:
        for x, grid, label in zip(batch["x"], batch["grid"], batch["label"], strict=True):
            sizes = grid.prod(-1)
            wanted = np.repeat(label, sizes)
            np.testing.assert_array_equal(x[: len(wanted)], np.tile(wanted[:, None], (1, 4)))
            assert not x[len(wanted) :].any()
            assert len(wanted) <= 18
    used = sum(batch["grid"].prod(-1).sum() for batch in whole)
    assert used / (20 * 4 * 18) > 0.9


@pytest.mark.parametrize(
    ("processes", "workers"), [(1, 2), (2, 0), (4, 0), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_batches_are_the_same_under_any_number_of_processes_and_workers(processes, workers, whole):
    parts = []
    for i in range(processes):
        own = stream(workers=workers)
        own.take_rows(range(4 * i // processes, 4 * (i + 1) // processes))
        parts.append(take(own, 6))
    for g, wanted in enumerate(whole[:6]):
        joined = {k: np.concatenate([part[g][k] for part in parts]) for k in wanted}
        assert equal(joined, wanted)


@pytest.mark.parametrize("at", [1, 7])
def test_a_stream_goes_on_from_its_saved_position(at, whole):
    first, again = stream(), stream()
    take(first, at)
    assert first.get_state()["position"] == len(seen(whole[:at]))
    again.set_state(first.get_state())
    for found, wanted in zip(take(again, 3), whole[at : at + 3], strict=True):
        assert equal(found, wanted)
    other = stream(rows=2, tokens=30)  # the order depends on neither
    other.set_state(first.get_state())
    found = seen(take(other, 2))
    assert found == [pair for pair in seen(whole) if pair[0] >= found[0][0]][: len(found)]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(UserError, match=r"got packing.tokens=11 and examples of \(3, 4, 4, 1\)"):
        stream(tokens=11)
    with pytest.raises(UserError, match="do not divide"):
        stream(shapes=((1, 4, 5, 1), *SHAPES[1:]))
    with pytest.raises(UserError, match="expected uint8"):
        next(stream(shapes=((1, 6, 4, 1), *SHAPES[1:])))


def test_an_empty_bucket_is_never_drawn():
    """One that only the other split has may be larger than a row."""
    split = Numbered((10, 6, 8, 5, 0))
    labels = [label for _, label in seen(take(stream(tokens=9, split=split), 12))]
    assert max(labels) == 28


def test_patches_are_those_of_the_network():
    x = np.arange(4 * 6 * 8 * 3, dtype=np.float32).reshape(4, 6, 8, 3)
    np.testing.assert_array_equal(
        patched(x, (2, 3, 4)), patchify(jnp.asarray(x[None]), (2, 3, 4))[0]
    )
    assert packing.grid_of(x.shape, (2, 3, 4)) == (2, 2, 2)
