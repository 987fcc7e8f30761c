"""Records of several shapes and from several places: who reads them and when changes nothing."""

import itertools
import json
import pickle
import shutil

import hostile
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import records_files
from PIL import Image

from dit import models, prepare, rng
from dit.config import resolve
from dit.data import records
from dit.data.captions import tokenized
from dit.data.pipeline import batches
from dit.data.source import bucket_sizes
from dit.data.sources import mixture
from dit.data.sources import records as source_of
from dit.diffusion.process import Process
from dit.types import UserError

SIZES = ((8, 8), (8, 16))


def prepared(root, first, n):
    """Records of pictures ``first .. first + n - 1``, each third one wide, which say their number."""
    members = []
    for k in range(first, first + n):
        picture = Image.fromarray(hostile.noise(k, *SIZES[k % 3 == 0]))
        members += [(f"{k}.png", hostile.saved(picture, "PNG")), (f"{k}.txt", b"n%d\nm%d" % (k, k))]
        members += [(f"{k}.cls", b"%d" % (k % 5))]
    (root / f"{first}.tar").write_bytes(hostile.tar(members))
    argv = [f"--source={root / f'{first}.tar'}", "--size=8x8,8x16", "--held-out=0.2"]
    prepare.main([*argv, "--workers=0", "--classes=5", f"--out={root / f'records{first}'}"])
    return {"name": "records", "path": str(root / f"records{first}")}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    return prepared(root, 0, 45), prepared(root, 100, 15)


def said(caption):
    return np.array([int(caption[1:])], np.int32), np.array([True])


def numbers(batch):
    return batch["tokens"][:, 0].tolist()


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def weighted(parts, *weights):
    given = tuple({**p, "weight": w} for p, w in zip(parts, weights, strict=True))
    return tokenized(mixture.build(parts=given), said)


def test_parts_are_seen_by_weight_and_each_example_once_in_an_epoch_of_its_bucket(parts):
    source = weighted(parts, 1, 3)
    train, sizes = source.train, bucket_sizes(source.train)
    assert source.shapes == 2 * tuple((1, *size, 3) for size in SIZES)
    assert (sum(sizes[:2]), sum(sizes[2:])) == (
        len(source_of.build(path=parts[0]["path"]).train),
        len(source_of.build(path=parts[1]["path"]).train),
    )
    stream = batches(train, batch_size=4, seed=0)
    wanted = np.array([w * n / sum(s) for w, s in ((1, sizes[:2]), (3, sizes[2:])) for n in s]) / 4
    np.testing.assert_allclose(stream.plan.shares, wanted, rtol=1e-6)
    turns, seen = [], [[] for _ in sizes]
    for _ in range(256):
        turns.append(stream.bucket)
        seen[stream.bucket] += numbers(next(stream))
    assert np.abs(np.bincount(turns, minlength=4) / 256 - wanted).max() < 4 / 256
    for bucket, n in enumerate(sizes):
        epochs = len(seen[bucket]) // n
        assert epochs > 1
        for epoch in np.reshape(seen[bucket][: n * epochs], (epochs, n)):
            assert len(set(epoch.tolist())) == n
    assert not set(seen[0] + seen[1]) & set(seen[2] + seen[3])
    assert train.fingerprint != tokenized(mixture.build(parts=parts), said).train.fingerprint
    assert train.fingerprint != weighted(parts, 1, 2).train.fingerprint
    equal = weighted(parts, sum(sizes[:2]), sum(sizes[2:])).train
    plain = batches(tokenized(mixture.build(parts=parts), said).train, batch_size=4, seed=0)
    other = batches(equal, batch_size=4, seed=0)
    by_shape = np.reshape(other.plan.shares, (2, 2)).sum(
        0
    )  # of which plain parts have one bucket each
    np.testing.assert_allclose(by_shape, plain.plan.shares, rtol=1e-8)


@pytest.mark.parametrize(
    ("count", "workers"),
    [(1, 0), (2, 0), (4, 0), pytest.param(2, 2, marks=pytest.mark.slow)],
)
def test_processes_workers_and_a_restart_give_the_same_stream(parts, count, workers):
    train = weighted(parts, 2, 1).train
    whole = take(batches(train, batch_size=8, seed=1), 14)
    first = batches(train, batch_size=8, seed=1)
    assert same(take(first, 6), whole[:6])
    state = json.loads(json.dumps(first.get_state()))
    streams = []
    for i in range(count):
        stream = batches(train, batch_size=8, seed=1, workers=workers, threads=1 + i)
        stream.set_state(state)
        stream.take_rows(range(i * 8 // count, (i + 1) * 8 // count))
        streams.append(stream)
    tails = [take(stream, 8) for stream in streams]
    rows = zip(*tails, strict=True)
    assert same(
        [{k: np.concatenate([p[k] for p in row]) for k in row[0]} for row in rows], whole[6:]
    )
    for stream in streams:
        stream.close()


def same(a, b):
    return all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
        for x, y in zip(a, b, strict=True)
    )


def test_what_is_sent_to_a_worker_is_small(parts):
    train = weighted(parts, 1, 1).train
    sent = pickle.dumps(train)
    assert len(sent) < 2**15
    assert same([pickle.loads(sent)[3]], [train[3]])


@pytest.mark.slow
def test_batches_of_a_shape_have_the_loss_and_gradients_of_their_examples_alone(parts):
    """The same, to rounding, as one example after the other, with its number in the stream."""
    model = resolve(
        "models", "dit", depth=1, width=16, heads=2, patch=4, in_channels=3, num_classes=5
    )
    loss_fn = resolve(
        "objectives",
        "denoise",
        times=resolve("diffusion.times", "logit_normal"),
        weight=resolve("diffusion.weights", "none"),
        patch=model.cell(),
    )
    process = Process(
        resolve("diffusion.paths", "linear"), resolve("diffusion.predictions", "velocity")
    )
    params = models.init(model, jax.random.key(0), shape=(1, 8, 8, 3))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), params)

    @jax.jit
    def gradients(batch):
        batch = {**batch, "x": batch["x"].astype(jnp.float32) / 127.5 - 1}
        f = lambda p: loss_fn(rng.root(0), p, models.apply_fn(model), process, batch)[0]  # noqa: E731
        return jax.value_and_grad(f)(params)

    stream = batches(source_of.build(path=parts[0]["path"]).train, batch_size=6, seed=0)
    shapes = set()
    for _ in range(6):
        batch = next(stream)
        if batch["x"].shape in shapes:
            continue
        shapes.add(batch["x"].shape)
        loss, grads = gradients(batch)
        each = [gradients({k: v[i : i + 1] for k, v in batch.items()}) for i in range(6)]
        np.testing.assert_allclose(loss, np.mean([one for one, _ in each]), rtol=1e-5)
        mean = jax.tree.map(lambda *g: sum(g) / 6, *(g for _, g in each))
        for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(mean), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))
    assert len(shapes) == 2
    stream.close()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, None), r"parts\[1\] with weight None; expected a number .* for each"),
        ((1, 0), r"parts\[1\] with weight 0"),
        ((float("nan"), 1), r"parts\[0\] with weight nan"),
        ((1, True), r"weight True"),
    ],
)
def test_weights_that_say_nothing_are_refused(parts, weights, message):
    with pytest.raises(UserError, match=message):
        weighted(parts, *weights)


def changed(folder, **fields):
    path = folder / records.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["fields"] |= fields
    path.write_text(json.dumps(manifest))


def test_a_shape_without_examples_and_a_part_without_any_are_named(tmp_path, parts):
    shutil.copytree(parts[0]["path"], tmp_path / "copy")
    manifest = records.read_manifest(tmp_path / "copy")
    manifest["fields"]["sizes"].append([16, 8])
    for split in manifest["splits"].values():
        split["buckets"].append(0)
    (tmp_path / "copy" / records.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"no example of records-.* has shape \(1, 16, 8, 3\)"):
        source_of.build(path=str(tmp_path / "copy"))
    manifest = records.read_manifest(tmp_path / "copy")
    manifest["fields"]["sizes"].pop()
    for split in manifest["splits"].values():
        split["buckets"].pop()
    manifest["shards"] = [s for s in manifest["shards"] if s["split"] != "train"]
    manifest["splits"]["train"] = {"records": 0, "buckets": [0, 0]}
    (tmp_path / "copy" / records.MANIFEST).write_text(json.dumps(manifest))
    empty = {"name": "records", "path": str(tmp_path / "copy")}
    with pytest.raises(UserError, match=r"parts\[1\] \('records'\) without training examples"):
        mixture.build(parts=(parts[0], empty))


def test_latents_of_other_weights_do_not_mix_and_what_is_not_finite_is_named(tmp_path):
    given = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        records_files.write(tmp_path / name, (4, 4, 2), 3, flip=False)
        given.append({"name": "records", "path": str(tmp_path / name)})
    assert len(mixture.build(parts=tuple(given)).train) == 12
    latents = records.read_manifest(tmp_path / "other")["fields"]["latents"]
    changed(tmp_path / "other", latents={**latents, "codec": {"name": "x", "weights": "0123"}})
    with pytest.raises(UserError, match=r"codec of their latents: 0123 in parts\[1\]"):
        mixture.build(parts=tuple(given))
    assert mixture.build(parts=(given[1], given[1])).codec == "0123"
    (tmp_path / "nan").mkdir()
    records_files.write(tmp_path / "nan", (4, 4, 2), 3, flip=False, bad=2)
    train = source_of.build(path=str(tmp_path / "nan")).train
    train[1]
    with pytest.raises(UserError, match=r"record 2 of .* holds 1 values"):
        train[2]


def test_all_examples_of_a_shape_are_one_bucket_for_those_who_ask_by_shape(parts):
    source = weighted(parts, 1, 3)
    one = source.bucket(0)
    sizes = bucket_sizes(source.train)
    assert source.shapes[0] == source.shapes[2] == one.shape
    assert len(one.train) == sizes[0] + sizes[2]
    ends = [0, sizes[0] - 1, sizes[0], len(one.train) - 1]
    firsts = [0, sizes[0] - 1, sum(sizes[:2]), sum(sizes[:3]) - 1]
    for i, k in zip(ends, firsts, strict=True):
        np.testing.assert_array_equal(one.train[i]["x"], source.train[k]["x"])
        assert one.train.caption(i) == source.train.caption(k)
    with pytest.raises(IndexError):
        one.train[len(one.train)]
