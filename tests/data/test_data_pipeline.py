"""The stream of batches: a pure function of (seed, position), whoever reads it from wherever."""

import dataclasses
import itertools
import json
import sys
import threading
import time

import numpy as np
import pytest

from dit.data.pipeline import batches, eval_batches
from dit.data.plan import TABLE, shuffled
from dit.data.source import STREAM_LENGTH, ArraySplit, Stream
from dit.data.sources import moving_digits, noise
from dit.data.transforms import RandomCrop, random_flip, sample_posterior
from dit.types import UserError

N = 23  # examples; example i is filled with i and has label i


@pytest.fixture(scope="module")
def split():
    x = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None, None], (N, 1, 2, 2, 1))
    return ArraySplit(x, np.arange(N), "numbers/train")


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


def join(parts, key):
    return np.concatenate([p[key] for p in parts])


def ids(*parts):
    """The positions that the two words of each ``id`` stand for."""
    return [(int(high) << 32) + int(low) for high, low in join(parts, "id")]


def test_shapes_and_types(split):
    batch = next(batches(split, batch_size=4, seed=0))
    assert batch["x"].shape == (4, 1, 2, 2, 1)
    assert batch["x"].dtype == np.uint8
    assert (batch["label"].dtype, batch["id"].dtype) == (np.int32, np.uint32)
    assert batch["id"].shape == (4, 2)
    np.testing.assert_array_equal(batch["x"][:, 0, 0, 0, 0], batch["label"])


def test_every_epoch_covers_every_example_once_in_a_new_order(split):
    stream = take(batches(split, batch_size=N, seed=3), 6)  # batch e is epoch e
    for batch in stream:
        assert sorted(batch["label"]) == list(range(N))
    orders = {tuple(batch["label"]) for batch in stream}
    assert len(orders) == 6
    assert ids(*stream) == list(range(6 * N))


def test_neighbouring_seeds_share_no_epoch(split):
    orders = [
        {tuple(b["label"]) for b in take(batches(split, batch_size=N, seed=seed), 4)}
        for seed in range(4)
    ]
    assert len(set.union(*orders)) == 16


def test_shuffle_is_close_to_uniform(split):
    few = ArraySplit(split.x[:5], split.label[:5], "few")
    firsts = join(take(batches(few, batch_size=5, seed=0), 250), "label").reshape(-1, 5)[:, 0]
    counts = np.bincount(firsts, minlength=5)  # 50 expected; chi squared with 4 degrees of freedom
    assert ((counts - 50) ** 2 / 50).sum() < 18.5  # the 0.1% quantile


@pytest.mark.first
@pytest.mark.parametrize("length", [1, 2, 1000, TABLE, TABLE + 4465])
def test_shuffle_is_a_permutation_of_each_epochs_own(length):
    orders = [[shuffled(0, e, k, length) for k in range(length)] for e in range(2)]
    for order in orders:
        assert np.bincount(order, minlength=length).max() == 1
    if length > 2:
        assert np.mean(np.equal(*orders)) < 10 / length
        assert abs(np.corrcoef(orders[0], np.arange(length))[0, 1]) < 4 / np.sqrt(length)


def test_without_shuffle_in_order_across_epochs(split):
    stream = take(batches(split, batch_size=10, seed=0, shuffle=False), 5)
    np.testing.assert_array_equal(join(stream, "label"), np.arange(50) % N)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resume_equals_uninterrupted(split, prefetch):
    kwargs = {"batch_size": 5, "seed": 1, "prefetch": prefetch, "transforms": (random_flip,)}
    whole = take(batches(split, **kwargs), 12)
    first = batches(split, **kwargs)
    head = take(first, 7)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = batches(split, **kwargs)
    next(second)  # a used iterator is set back as well as a fresh one
    second.set_state(state)
    assert_same(head + take(second, 5), whole)
    assert_same(take(batches(split, start=35, **kwargs), 5), whole[7:])


def test_close_keeps_the_place(split):
    it = batches(split, batch_size=5, seed=1)
    head = take(it, 2)
    it.close()
    assert_same(head + take(it, 2), take(batches(split, batch_size=5, seed=1), 4))


def test_resume_with_another_batch_size_and_process_count(split):
    whole = join(take(batches(split, batch_size=6, seed=2), 10), "label")
    state = {"position": 18, "fingerprint": split.fingerprint}
    parts = [batches(split, batch_size=14, seed=2) for _ in range(2)]
    for i, part in enumerate(parts):
        part.set_state(state)
        part.take_rows(range(7 * i, 7 * i + 7))
    rows = [join([a, b], "label") for a, b in zip(*(take(p, 3) for p in parts), strict=True)]
    np.testing.assert_array_equal(np.concatenate(rows), whole[18:60])


def test_workers_give_the_same_stream(split):
    kwargs = {"batch_size": 6, "seed": 5, "start": 3, "transforms": (random_flip,)}
    apart = batches(split, workers=2, **kwargs)
    try:
        assert_same(take(apart, 9), take(batches(split, **kwargs), 9))
    finally:
        apart.close()


@pytest.mark.parametrize("rows", [range(4, 8), [0, 1, 4, 5], [3]], ids=str)
def test_a_process_makes_its_own_rows_of_the_global_batch(split, rows):
    whole = take(batches(split, batch_size=8, seed=0), 6)
    part = batches(split, batch_size=8, seed=0)
    next(part)
    part.take_rows(rows)
    assert_same(take(part, 5), [{k: x[list(rows)] for k, x in b.items()} for b in whole[1:]])
    assert part.get_state()["position"] == 48  # that of all processes together
    assert part.shapes() == {k: (x.shape, x.dtype) for k, x in whole[0].items()}


@pytest.mark.parametrize("rows", [[], [8], [-1]], ids=str)
def test_rows_that_are_not_there_are_refused(split, rows):
    with pytest.raises(UserError, match=r"expected some of 0 \.\. 7"):
        batches(split, batch_size=8, seed=0).take_rows(rows)


def test_a_stream_is_read_in_order_and_ids_are_positions():
    split = noise.build(shape=(1, 2, 2, 1), num_classes=5).train
    batch = next(batches(split, batch_size=4, seed=9, start=1000))
    assert ids(batch) == [1000, 1001, 1002, 1003]
    np.testing.assert_array_equal(batch["x"][2], split[1002]["x"])


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(Stream):
    """Counts how many threads make an example at a time; waits for ``together`` of them."""

    together: int = 1
    seen: list = dataclasses.field(default_factory=list)
    lock: object = dataclasses.field(default_factory=threading.Lock)

    def make(self, rng, i):
        with self.lock:
            self.seen.append(self.seen[-1] + 1 if self.seen else 1)
        deadline = time.monotonic() + 300
        while max(self.seen) < self.together and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.002)
        with self.lock:
            self.seen.append(self.seen[-1] - 1)
        return {"x": np.zeros((1, 2, 2, 1), np.uint8)}


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_threads_read_as_are_asked_for_whatever_is_read_ahead(threads, prefetch):
    split = Counted(seed=0, length=100, fingerprint="counted/train", together=threads)
    it = batches(split, batch_size=6, seed=0, threads=threads, prefetch=prefetch)
    found = ids(*take(it, 3))
    it.close()
    assert found == list(range(18))
    assert max(split.seen) == threads


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
def test_threads_give_the_same_stream(split, threads):
    kwargs = {"batch_size": 5, "seed": 5, "start": 3, "transforms": (random_flip,)}
    assert_same(
        take(batches(split, threads=threads, **kwargs), 4),
        take(batches(split, prefetch=0, **kwargs), 4),
    )


@pytest.mark.parametrize(
    ("workers", "edge"),
    [(0, 2**31), (0, 2**32), (0, 2**40), pytest.param(2, 2**32, marks=pytest.mark.slow)],
)
def test_a_stream_goes_on_beyond_what_one_word_holds(split, edge, workers):
    """Endless data and epochs of finite ones, ids, shuffling and resuming."""
    for source in (noise.build(shape=(1, 2, 2, 1)).train, split):
        it = batches(source, batch_size=4, seed=0, start=edge - 6, workers=workers)
        found = take(it, 3)
        it.close()
        assert ids(*found) == list(range(edge - 6, edge + 6))
        other = batches(source, batch_size=4, seed=0, prefetch=0)
        other.set_state({**it.get_state(), "position": edge - 2})
        assert_same(take(other, 2), found[1:])
    labels = join(take(batches(split, batch_size=N, seed=0, start=N * (edge // N)), 1), "label")
    assert sorted(labels) == list(range(N))  # an epoch there is whole too


ODD = {
    "another shape": {"x": np.zeros((1, 2, 3, 1), np.uint8), "label": 1},
    "another type": {"x": np.zeros((1, 2, 2, 1), np.float32), "label": 1},
    "no label": {"x": np.zeros((1, 2, 2, 1), np.uint8)},
    "another key": {"x": np.zeros((1, 2, 2, 1), np.uint8), "label": 1, "context": np.zeros(2)},
}


@pytest.mark.parametrize("what", ODD)
def test_examples_that_are_not_alike_are_refused(split, what):
    def odd(example, rng):
        return ODD[what] if example["label"] == 5 else example

    with pytest.raises(UserError, match="expected the same of all examples"):
        next(batches(split, batch_size=N, seed=0, transforms=(odd,)))


def test_every_key_of_the_examples_is_in_the_batch(split):
    def more(example, rng):
        return {**example, "context": np.full((3, 2), example["label"], np.float32)}

    batch = next(batches(split, batch_size=4, seed=0, transforms=(more,)))
    assert batch.keys() == {"x", "label", "context", "id"}
    assert batch["context"].shape == (4, 3, 2)
    np.testing.assert_array_equal(batch["context"][:, 0, 0], batch["label"])


def test_state_is_small_and_counts_only_what_was_given_out(split):
    it = batches(split, batch_size=5, seed=0, prefetch=3)
    take(it, 4)
    assert it.get_state() == {"position": 20, "fingerprint": "numbers/train"}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"position": -5, "fingerprint": "numbers/train"}, "position -5"),
        ({"position": STREAM_LENGTH, "fingerprint": "numbers/train"}, "position"),
        ({"position": 10.0, "fingerprint": "numbers/train"}, "10.0"),
        ({"position": True, "fingerprint": "numbers/train"}, "True"),
        ({"position": 10, "fingerprint": "letters/train"}, "letters/train"),
        ({"position": 10}, "fingerprint"),
        (None, "None"),
    ],
)
def test_a_bad_state_is_refused_and_changes_nothing(split, state, says):
    it = batches(split, batch_size=5, seed=0)
    next(it)
    with pytest.raises(UserError, match=says):
        it.set_state(state)
    assert it.get_state()["position"] == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"workers": -1},
        {"prefetch": -1},
        {"threads": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"start": -1},
    ],
)
def test_bad_arguments_are_refused_at_once(split, wrong):
    with pytest.raises(UserError):
        batches(split, **{"batch_size": 4, "seed": 0, **wrong})


def test_the_error_of_a_reading_thread_arrives(split):
    def broken(example, rng):
        raise UserError("cannot read file x")

    with pytest.raises(UserError, match="cannot read file x"):
        next(batches(split, batch_size=4, seed=0, transforms=(broken,)))


def test_flips_half_of_the_images():
    x = np.tile(np.array([0, 1], np.uint8)[:, None], (400, 3, 2, 1, 1)).reshape(400, 3, 2, 2, 1)
    split = ArraySplit(x, np.zeros(400, int), "pairs")
    batch = next(batches(split, batch_size=400, seed=0, transforms=(random_flip,)))
    flipped = batch["x"][..., 0, 0] == 1  # (n, f, h): the white pixel came to the left
    assert (flipped == flipped[:, :1, :1]).all()  # frames and rows alike
    assert 160 < flipped[:, 0, 0].sum() < 240  # 200 expected, 4 standard deviations
    kwargs = {"batch_size": 400, "seed": 0, "shuffle": False, "transforms": (random_flip,)}
    one, other = take(batches(split, **kwargs), 2)
    assert 160 < (one["x"] != other["x"])[:, 0, 0, 0, 0].sum() < 240  # each epoch draws anew


def test_crop_is_a_window_of_the_image():
    x = np.arange(5 * 6, dtype=np.uint8).reshape(1, 5, 6, 1)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        out = RandomCrop(4)({"x": x}, rng)["x"]
        top, left = divmod(int(out[0, 0, 0, 0]), 6)
        np.testing.assert_array_equal(out, x[:, top : top + 4, left : left + 4])
        seen.add((top, left))
    assert seen == {(t, k) for t in range(2) for k in range(3)}
    with pytest.raises(UserError, match="5 x 6"):
        RandomCrop(7)({"x": x}, rng)


@pytest.mark.parametrize("move", [random_flip, RandomCrop(3)], ids=["flip", "crop"])
def test_what_belongs_to_single_pixels_moves_with_them(move):
    at = np.arange(30).reshape(1, 5, 6)
    rest = {"label": 3, "context": np.ones((2, 5))}
    for seed in range(4):
        example = {"x": at[..., None], "concat": np.stack([at, -at], -1), "known": at % 2 == 0}
        out = move({**example, **rest}, np.random.default_rng(seed))
        np.testing.assert_array_equal(out["concat"][..., :1], out["x"])
        np.testing.assert_array_equal(out["known"], out["x"][..., 0] % 2 == 0)
        assert {k: out[k] for k in rest} == rest


def test_posterior_samples_have_the_given_moments():
    mean, std = (
        np.full((1, 100, 100, 1), 3.0, np.float32),
        np.full((1, 100, 100, 1), 0.5, np.float32),
    )
    x = sample_posterior({"x": mean, "std": std}, np.random.default_rng(0))["x"]
    assert x.dtype == np.float32
    assert abs(x.mean() - 3) < 0.02
    assert abs(x.std() - 0.5) < 0.02


def test_one_pass_in_order_with_a_mask(split):
    stream = list(eval_batches(split, batch_size=10))
    assert [len(b["x"]) for b in stream] == [10, 10, 10]
    mask = join(stream, "mask")
    assert mask.sum() == N
    np.testing.assert_array_equal(join(stream, "label")[mask], np.arange(N))
    assert len(list(eval_batches(split, batch_size=10, limit=10))) == 1


def test_a_clip_is_drawn_at_once_not_frame_by_frame():
    """As many calls whatever its size: streaming is no brake on training."""

    def called(**kwargs):
        split, calls = moving_digits.build(**kwargs).train, []
        split[0]
        sys.setprofile(lambda frame, event, arg: calls.append(event))
        try:
            split[1]
        finally:
            sys.setprofile(None)
        return len(calls)

    assert 10 < called(frames=2, size=16) == called(frames=32, size=64) < 1100
