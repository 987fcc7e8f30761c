"""Records are read at random from shards that must be those of the manifest."""

import contextlib
import json
import pickle
import shutil
import tracemalloc

import hostile
import numpy as np
import pytest
from PIL import Image

from dit import embed, prepare
from dit.data import captions, records
from dit.data.pipeline import batches
from dit.data.sources import records as source_of
from dit.types import UserError

N = 30


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory of records with labels and two captions each."""
    root = tmp_path_factory.mktemp("records")
    members = []
    for i in range(N):
        picture = hostile.saved(Image.fromarray(hostile.noise(i, 8, 8)), "PNG")
        members += [
            (f"{i}.png", picture),
            (f"{i}.txt", b"one\ntwo %d" % i),
            (f"{i}.cls", b"%d" % (i % 4)),
        ]
    (root / "in.tar").write_bytes(hostile.tar(members))
    argv = [f"--source={root / 'in.tar'}", "--size=8", "--held-out=0.2", "--workers=0"]
    prepare.main([*argv, f"--out={root / 'out'}"])
    return root / "out"


@pytest.fixture
def copied(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def test_pictures_labels_and_captions_come_back(prepared):
    source = source_of.build(path=str(prepared))
    assert (source.shape, source.num_classes) == ((1, 8, 8, 3), 4)
    seen = []
    for split in (source.train, source.held_out):
        for i in range(len(split)):
            example = split[i]
            first, second = example["caption"]
            k = int(second.split()[1])
            assert (first, example["label"]) == ("one", k % 4)
            np.testing.assert_array_equal(example["x"][0], hostile.noise(k, 8, 8))
            seen.append(k)
    assert sorted(seen) == list(range(N))
    with pytest.raises(IndexError):
        source.train[-1]


def test_each_position_has_one_of_the_captions(prepared):
    source = captions.tokenized(source_of.build(path=str(prepared), flip=True), lengths)
    sent = pickle.loads(pickle.dumps(source.train))
    one, same = (batches(split, batch_size=12, seed=3) for split in (source.train, sent))
    found = [next(one) for _ in range(4)]
    tokens = np.concatenate([batch["tokens"] for batch in found])
    assert set(tokens[:, 0]) > {3}
    assert {"x", "label", "tokens", "tokens_mask", "id"} == set(found[0])
    for batch in found:
        for name, array in next(same).items():
            np.testing.assert_array_equal(array, batch[name])
    one.close(), same.close()


def lengths(caption):
    return np.array([len(caption)], np.int32), np.array([True])


def test_a_missing_shard_a_shorter_one_and_another_one_are_named(copied):
    manifest = records.read_manifest(copied)
    first, second = (copied / shard["name"] for shard in manifest["shards"])
    held = source_of.build(path=str(copied)).held_out
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(UserError, match=f"{second.name}.*end differs"):
        held[0]
    with pytest.raises(UserError, match=f"{second.name}.*end differs"):
        source_of.build(path=str(copied)).held_out[0]
    second.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{second.name}.* has {len(content) - 1} bytes"):
        source_of.build(path=str(copied))
    first.unlink()
    with pytest.raises(UserError, match=f"lacks '{first.name}', one of 2 shards"):
        source_of.build(path=str(copied))


@pytest.mark.parametrize("where", [0.1, 0.5])
def test_a_damaged_record_is_named_or_reads_as_before(copied, where):
    path = copied / records.read_manifest(copied)["shards"][0]["name"]
    before = [e["x"] for e in map(source_of.build(path=str(copied)).train.__getitem__, range(20))]
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 255
    path.write_bytes(content)
    train = source_of.build(path=str(copied)).train
    for i, x in enumerate(before):
        with contextlib.suppress(UserError):  # which is a ValueError, and no AssertionError
            np.testing.assert_array_equal(train[i]["x"], x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.unlink(), "no manifest.json in"),
        (lambda p: p.write_text("{"), "cannot read"),
        (lambda p: p.write_text("[]"), "has format None; expected 1"),
        (lambda p: p.write_text('{"format": 99}'), "has format 99; expected 1"),
    ],
)
def test_a_manifest_that_says_nothing_is_refused(copied, change, message):
    change(copied / records.MANIFEST)
    with pytest.raises(UserError, match=message):
        source_of.build(path=str(copied))


def test_another_content_is_another_fingerprint_but_another_place_is_not(prepared, copied):
    one, same = (source_of.build(path=str(path)) for path in (prepared, copied))
    assert one.fingerprint == same.fingerprint
    manifest = json.loads((copied / records.MANIFEST).read_text())
    manifest["shards"][0]["sha256"] = "0"
    (copied / records.MANIFEST).write_text(json.dumps(manifest))
    assert source_of.build(path=str(copied)).fingerprint != one.fingerprint


def test_ten_million_records_open_in_constant_memory_and_travel_as_a_path(tmp_path, prepared):
    """The shards are holes of the right length, all but the one that is read."""
    manifest = records.read_manifest(prepared)
    kept, held = manifest["shards"]
    shards, total = 5000, 10_000_000
    each = total // shards
    manifest["shards"] = []
    for i in range(shards):
        name = records.shard_name("train", i, shards)
        shard = {**kept, "name": name, "records": each}
        if i == shards - 1:
            shutil.copy(prepared / kept["name"], tmp_path / name)
            shard["records"] = kept["records"]
        else:
            with open(tmp_path / name, "wb") as file:
                file.truncate(kept["bytes"])
        manifest["shards"].append(shard)
    shutil.copy(prepared / held["name"], tmp_path / held["name"])
    manifest["shards"].append(held)
    count = each * (shards - 1) + kept["records"]
    manifest["splits"]["train"] = {"records": count, "buckets": [count]}
    (tmp_path / records.MANIFEST).write_text(json.dumps(manifest))
    tracemalloc.start()
    source = source_of.build(path=str(tmp_path))
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.train) == count
    assert left < 2**20
    assert peak < 32 * 2**20
    assert len(pickle.dumps(source.train)) < 2**17
    expected = source_of.build(path=str(prepared)).train[3]
    sent = pickle.loads(pickle.dumps(source.train))
    for train in (source.train, sent):
        np.testing.assert_array_equal(train[count - kept["records"] + 3]["x"], expected["x"])
    with pytest.raises(UserError, match="00000-of-05000"):
        source.train[0]


@pytest.mark.slow
def test_what_text_encoders_make_is_stored_with_each_caption(tmp_path, prepared):
    """And training is given that of the caption at hand, each of them in time."""
    argv = [f"--source={prepared.parent / 'in.tar'}", "--size=8", "--held-out=0.2", "--workers=0"]
    argv += ["--text=minilm:length=8", f"--out={tmp_path / 'out'}", "--batch=8"]
    prepare.main(argv)
    manifest = records.read_manifest(tmp_path / "out")
    assert manifest["fields"]["text"] == {
        "context": {"shape": [8, 384], "dtype": "float16"},
        "context_mask": {"shape": [8], "dtype": "bool"},
        "pooled": {"shape": [384], "dtype": "float16"},
    }
    source, plain = (source_of.build(path=str(p)) for p in (tmp_path / "out", prepared))
    said = sorted({c for i in range(5) for c in plain.train[i]["caption"]})
    embed.main(
        ["--text=minilm:length=8", f"--out={tmp_path / 'c.npz'}", *(f"--prompt={c}" for c in said)]
    )
    expected = np.load(tmp_path / "c.npz")
    stream = batches(source.train, batch_size=5, seed=0, shuffle=False)
    assert stream.shapes()["context"] == ((5, 8, 384), np.float16)
    seen = set()
    for epoch in range(6):
        batch = stream.look(range(epoch * len(source.train), epoch * len(source.train) + 5))
        assert {"x", "label", "context", "context_mask", "pooled", "id"} == set(batch)
        for i in range(5):
            known = [said.index(c) for c in plain.train[i]["caption"]]
            near = [np.abs(expected["pooled"][k] - batch["pooled"][i]).max() < 1e-3 for k in known]
            assert sum(near) == 1
            k = known[near.index(True)]
            seen.add((i, near.index(True)))
            mask = expected["context_mask"][k]
            np.testing.assert_array_equal(batch["context_mask"][i], mask)
            off = np.abs(batch["context"][i] - expected["context"][k])[mask]
            assert off.max() < 1e-2
            assert not batch["context"][i][~mask].any()
    assert len(seen) == 10
    np.testing.assert_array_equal(source.held_out[0]["x"], plain.held_out[0]["x"])
    with pytest.raises(UserError, match="needs captions"):
        prepare.main([*argv, "--fields=label"])
    stream.close()
