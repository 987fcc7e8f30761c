"""Buckets: every example once in an epoch of its own, found from the position alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from dit.data.pipeline import batches, eval_batches
from dit.data.plan import BLOCK, Plan
from dit.data.source import ArraySplit, Source
from dit.data.sources import digits, mixture, moving_digits
from dit.data.transforms import random_flip
from dit.types import UserError

SIZES = [(7,), (5, 9, 4), (1, 40, 0, 13), (64, 64), (3, 1000)]
SHAPES = ((1, 2, 2, 1), (1, 2, 3, 1), (1, 3, 2, 1), (2, 2, 2, 1), (3, 2, 2, 1))
COUNTS = (10, 6, 8, 5, 3)  # their sum divides the length of a block


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


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def same(a, b):
    return all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("seed", "batch"), [(0, 1), (3, 4), (8, 16)])
def test_each_bucket_takes_its_own_stream_in_order(sizes, seed, batch):
    """So an epoch of it is whole, and seeking is the same as counting from the start."""
    plan, taken = Plan(sizes, batch, seed), [0] * len(sizes)
    for g in range(3 * BLOCK + 5):
        assert plan.counts(g)[0] <= plan.counts(g + 1)[0]
        bucket, first = plan(g * batch)
        assert first == taken[bucket]
        taken[bucket] += batch
        if g % BLOCK == BLOCK - 1:
            assert [n // batch for n in taken] == plan.counts(g + 1)


@pytest.mark.parametrize("sizes", [*SIZES, (2**61, 2**61), (10**9, 1, 7 * 10**8, 3)], ids=str)
def test_turns_are_in_proportion_and_exact_after_as_many_batches_as_examples(sizes):
    plan, total = Plan(sizes, 32, 0), sum(sizes)
    assert plan.counts(total) == list(sizes)
    assert plan.counts(5 * total) == [5 * n for n in sizes]
    rng = np.random.default_rng(0)
    for g in [*range(200), *map(int, rng.integers(2**55, size=200))]:
        now, then = plan.counts(g), plan.counts(g + 1)
        assert sum(now) == g
        assert sorted(b - a for a, b in zip(now, then, strict=True)) == [0] * (len(sizes) - 1) + [1]
        off = [c - g * n // total for c, n in zip(now, sizes, strict=True)]
        assert max(map(abs, off)) <= len(sizes)


def test_the_order_is_seeded_and_mixes_the_buckets():
    orders = [
        tuple(Plan((5, 9, 4), 8, seed)(8 * g).bucket for g in range(BLOCK)) for seed in range(6)
    ]
    assert len(set(orders)) == 6
    assert len({tuple(sorted(order)) for order in orders}) == 1
    changes = [sum(a != b for a, b in itertools.pairwise(order)) for order in orders]
    assert min(changes) > BLOCK / 3  # of independent draws 5/8 would change


@pytest.mark.parametrize(("seed", "batch"), [(0, 1), (5, 4), (2, 7)])
def test_every_example_comes_once_in_an_epoch_of_its_bucket(seed, batch):
    assert BLOCK % sum(COUNTS) == 0
    stream = take(batches(Numbered(), batch_size=batch, seed=seed), BLOCK)
    times = batch * BLOCK // sum(COUNTS)  # that each bucket has been gone through
    found = np.concatenate([b["label"] for b in stream])
    np.testing.assert_array_equal(np.bincount(found), [times] * sum(COUNTS))
    ends = np.cumsum(COUNTS)
    bucket = np.searchsorted(ends, found, side="right")
    epochs = {i: found[bucket == i].reshape(times, n) for i, n in enumerate(COUNTS)}
    for i, n in enumerate(COUNTS):
        assert (np.sort(epochs[i]) == np.arange(ends[i] - n, ends[i])).all()
    assert (epochs[0][0] != epochs[0][1]).any()
    ids = np.concatenate([b["id"] for b in stream])
    np.testing.assert_array_equal(ids[:, 1], np.arange(BLOCK * batch))  # unique: they key the noise
    for b in stream:
        assert b["x"].shape[1:] in SHAPES
        np.testing.assert_array_equal(b["x"][:, 0, 0, 0, 0], b["label"])


@pytest.mark.parametrize("count", [2, 4])
def test_a_run_goes_on_in_the_middle_with_another_number_of_processes(count):
    kwargs = {"batch_size": 8, "seed": 1, "transforms": (random_flip,)}
    whole = take(batches(Numbered(), **kwargs), 30)
    first = batches(Numbered(), **kwargs)
    first.take_rows(range(8))
    head = take(first, 13)
    parts = [batches(Numbered(), **kwargs, threads=1 + i % 3, prefetch=i) for i in range(count)]
    for i, part in enumerate(parts):
        part.set_state(first.get_state())
        part.take_rows(range(i * 8 // count, (i + 1) * 8 // count))
    tails = [take(part, 17) for part in parts]
    rows = zip(*tails, strict=True)
    joined = [{k: np.concatenate([p[k] for p in row]) for k in row[0]} for row in rows]
    assert same(head + joined, whole)
    assert {str(part.get_state()) for part in parts} == {
        str({"position": 240, "fingerprint": "numbered/train in batches of 8"})
    }


@pytest.mark.slow
def test_processes_that_read_give_the_same_stream():
    kwargs = {"batch_size": 8, "seed": 1, "start": 80}
    it = batches(Numbered(), workers=2, **kwargs)
    found = take(it, 20)
    it.close()
    assert same(found, take(batches(Numbered(), **kwargs), 20))


def test_a_position_belongs_to_its_batch_size():
    state = {"position": 32, "fingerprint": "numbered/train in batches of 8"}
    with pytest.raises(UserError, match="in batches of 16"):
        batches(Numbered(), batch_size=16, seed=0).set_state(state)
    with pytest.raises(UserError, match="multiple of the batch size, 16"):
        batches(Numbered(), batch_size=16, seed=0, start=8)


def test_what_comes_and_its_shapes_are_known_before():
    stream = batches(Numbered(bucket_sizes=(11, 0, 9, 5, 3)), batch_size=4, seed=0)
    seen = [stream.plan(4 * g).bucket for g in range(BLOCK)]
    assert stream.coming(BLOCK) == list(dict.fromkeys(seen))
    assert sorted(stream.coming()) == [0, 2, 3, 4]
    for _ in range(20):
        bucket = stream.bucket
        batch = next(stream)
        assert {k: (x.shape, x.dtype) for k, x in batch.items()} == stream.shapes(bucket)


@pytest.mark.parametrize("limit", [None, 17, 1])
def test_one_pass_has_full_batches_of_one_bucket(limit):
    stream = list(eval_batches(Numbered(), batch_size=4, limit=limit))
    found = np.concatenate([b["label"][b["mask"]] for b in stream])
    assert len(found) == len(set(found)) == (limit or sum(COUNTS))
    assert {len(b["x"]) for b in stream} == {4}
    if limit == 17:
        shares = np.bincount(np.searchsorted(np.cumsum(COUNTS), found, side="right"), minlength=5)
        assert np.abs(shares - np.array(COUNTS) / 2).max() <= 1


def digest(stream, count):
    import hashlib

    sha = hashlib.sha256()
    for batch in take(stream, count):
        for name, x in sorted(batch.items()):
            sha.update(f"{name}{x.dtype}{x.shape}".encode() + x.tobytes())
    return sha.hexdigest()[:16]


def test_one_shape_is_the_stream_that_it_was_before_there_were_buckets():
    """Digests of an earlier version, whose checkpoints go on."""
    still, moving = digits.build(), moving_digits.build()
    assert moving.fingerprint == "moving_digits-625be364fbe4"
    many = np.arange(70001, dtype=np.uint32).reshape(-1, 1, 1, 1, 1)
    flipped = {"batch_size": 50, "seed": 7, "start": 1231, "transforms": (random_flip,)}
    large = ArraySplit(many, None, "big")
    assert digest(batches(still.train, batch_size=64, seed=0), 60) == "dddbd44fbc8fd7ef"
    assert digest(batches(still.train, **flipped), 40) == "f0a5bafa62698618"
    assert digest(batches(large, batch_size=64, seed=3, start=69990), 3) == "b3aeeafc87de609b"
    late = batches(moving.train, batch_size=4, seed=0, start=2**33 - 5)
    assert digest(late, 3) == "7535a5f6b5ffe8eb"
    assert digest(eval_batches(still.held_out, batch_size=128, limit=200), 2) == "364c81a143ebe241"


def part(**more):
    return {
        "name": "moving_digits",
        "frames": 1,
        "speed": (0.0, 1.0),
        "clips": 6,
        "held_out_clips": 4,
        **more,
    }


def test_a_mixture_is_its_parts_after_each_other():
    given = (part(size=(9, 12)), part(frames=2, size=10, clips=3), part())
    source = mixture.build(parts=given)
    alone = [moving_digits.build(**{k: v for k, v in p.items() if k != "name"}) for p in given]
    assert source.shapes == ((1, 9, 12, 1), (2, 10, 10, 1), (1, 16, 16, 1))
    assert source.shape == source.shapes[0]
    assert source.train.bucket_sizes == (6, 3, 6)
    rows = [
        example for other in alone for example in (other.train[i] for i in range(len(other.train)))
    ]
    assert same([source.train[i] for i in range(15)], rows)
    for i, other in enumerate(alone):
        one = source.bucket(i)
        assert (one.shape, len(one.train)) == (other.shape, len(other.train))
        assert same([one.held_out[3]], [other.held_out[3]])


def test_parts_of_one_shape_share_its_batches():
    given = (part(), part(size=10, clips=3), {**part(clips=4), "seed": 4})
    source = mixture.build(parts=given)
    alone = [moving_digits.build(**{k: v for k, v in p.items() if k != "name"}) for p in given]
    assert source.shapes == ((1, 16, 16, 1), (1, 10, 10, 1))
    assert source.train.bucket_sizes == (10, 3)
    order = (alone[0], alone[2], alone[1])
    rows = [x for other in order for x in (other.train[i] for i in range(len(other.train)))]
    assert same([source.train[i] for i in range(13)], rows)
    assert [p.fingerprint for p in source.parts] == [other.fingerprint for other in alone]
    assert [p.fingerprint for p in source.bucket(0).parts] == [
        other.fingerprint for other in (alone[0], alone[2])
    ]


def test_endless_parts_take_turns():
    noise = {"name": "noise", "num_classes": 10}
    parts = ({**noise, "shape": (1, 2, 2, 3)}, {**noise, "shape": (2, 2, 2, 3)})
    source = mixture.build(parts=parts)
    assert source.streaming
    assert source.train.bucket_sizes == (2**61, 2**61)
    plan = batches(source.train, batch_size=4, seed=0).plan
    assert np.mean([plan(2**40 + 4 * g).bucket for g in range(BLOCK)]) == 0.5


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((), "no parts"),
        (({"size": 8},), r"parts\[0\]"),
        ((part(), part(clips=None)), r"differ in being endless: True in parts\[1\]"),
        ((part(), {"name": "noise", "shape": (1, 8, 8, 1), "num_classes": 3}), "differ in classes"),
        (
            (
                {"name": "noise", "shape": (1, 8, 8, 1), "num_classes": 5},
                {"name": "shapes"},
            ),
            "number of channels",
        ),
        (({"name": "moving_digit"},), "did you mean 'moving_digits'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, says):
    with pytest.raises(UserError, match=says):
        mixture.build(parts=parts)


def test_a_source_has_a_shape_for_each_bucket():
    split = Numbered()
    with pytest.raises(ValueError, match="expected one for each"):
        Source(split, split, SHAPES[0], None, "numbered", shapes=SHAPES[:2])
