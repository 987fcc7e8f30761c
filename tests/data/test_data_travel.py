"""What is sent to the processes that read data is small, and gives the same examples there."""

import gc
import itertools
import pathlib
import pickle
import types

import numpy as np
import pytest
from PIL import Image

from dit import config
from dit.data import travel
from dit.data.pipeline import batches
from dit.data.source import ArraySplit
from dit.data.sources import folder, latents

MOST = 2**20
MANY = 150_000  # rows: their numbers and labels alone take more than a megabyte


def latents_in(root, counts, shape=(2, 2, 1), labelled=True):
    """Files of latents; the value of a row is its number."""
    root.mkdir()
    first = 0
    for k, count in enumerate(counts):
        name = "" if len(counts) == 1 else f"-{k:03}"
        row = np.arange(first, first + count, dtype=np.float32).reshape(-1, *[1] * len(shape))
        np.save(root / f"latents{name}.npy", np.broadcast_to(row, (count, *shape)))
        if labelled:
            np.save(root / f"labels{name}.npy", np.arange(count) % 3)
        first += count
    return str(root)


def large_folder(root, monkeypatch):
    """A folder of as many files as are said to be there; one picture stands for all."""
    Image.new("RGB", (4, 4), (9, 8, 7)).save(root / "one.png")
    entry = types.SimpleNamespace(stat=lambda: types.SimpleNamespace(st_size=1))
    names = [f"class {i % 100:04}/picture number {i:09}.png" for i in range(MANY // 5)]
    monkeypatch.setattr(folder, "walk", lambda root: ((name, entry) for name in sorted(names)))
    monkeypatch.setattr(folder, "tell_classes", lambda root, classes: None)
    read = folder.pictures.read
    monkeypatch.setattr(folder.pictures, "read", lambda path, *a: read(str(root / "one.png"), *a))
    return {"path": str(root), "size": 4}


LARGE = {  # a source of data that are large, or as large as they come
    "digits": lambda root, patch: {},
    "moving_digits": lambda root, patch: {},
    "shapes": lambda root, patch: {},
    "shapes_text": lambda root, patch: {},
    "world": lambda root, patch: {"size": 64, "frames": 17},
    "noise": lambda root, patch: {"shape": (1, 64, 64, 4), "num_classes": 7},
    "folder": large_folder,
    "latents": lambda root, patch: {"path": latents_in(root / "z", [MANY])},
    "latents, in shards": lambda root, patch: {"path": latents_in(root / "z", [MANY // 50] * 50)},
}

LARGE["emoji"] = lambda root, patch: {"size": 8}
LARGE["photographs"] = lambda root, patch: {"size": 64}
LARGE["mixture"] = lambda root, patch: {
    "parts": (
        {"name": "latents", "path": latents_in(root / "a", [MANY])},
        {"name": "latents", "path": latents_in(root / "b", [MANY], (3, 2, 1))},
    )
}


def sent(thing):
    """What arrives in another process, after checking that it is not much that travels."""
    data = pickle.dumps(thing)
    assert len(data) < MOST
    return pickle.loads(data)


def test_every_source_is_tested_here_or_with_its_own_files():
    assert {name.partition(",")[0] for name in LARGE} | {"tfds", "records"} == {
        *config.names("data.sources")
    }


@pytest.mark.parametrize("name", LARGE)
def test_the_splits_of_every_source_travel_light(name, tmp_path, monkeypatch):
    source = config.resolve(
        "data.sources", name.partition(",")[0], **LARGE[name](tmp_path, monkeypatch)
    )
    for split in (source.train, source.held_out):
        twin = sent(split)
        assert len(twin) == len(split)
        for i in (0, len(split) // 2, len(split) - 1):
            a, b = split[i], twin[i]
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[k], b[k]) for k in a)


def test_arrays_travel_light_whether_in_memory_or_mapped(tmp_path):
    x = np.arange(2 * MOST, dtype=np.uint8).reshape(-1, 1, 2, 2, 1)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for given in (x, x[::2], mapped, mapped[1000:-7], np.asarray(mapped)[5:]):
        split = ArraySplit(given, np.arange(len(given), dtype=np.int64), "large")
        twin = sent(split)
        np.testing.assert_array_equal(twin.x, given)
        np.testing.assert_array_equal(twin.label, split.label)
        if isinstance(given, np.memmap):
            assert pathlib.Path(twin.x.filename) == tmp_path / "x.npy"  # and no copy of it
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[0] = 99  # is in no file
    np.testing.assert_array_equal(sent(ArraySplit(private, None, "private")).x, private)


def test_a_temporary_file_is_written_once_and_lives_as_long_as_its_array(tmp_path, monkeypatch):
    monkeypatch.setattr(travel.tempfile, "tempdir", str(tmp_path))
    split = ArraySplit(np.zeros((MOST, 1, 1, 1, 1), np.uint8), None, "large")
    pickle.dumps(split), pickle.dumps(split)
    assert len(list(tmp_path.iterdir())) == 1
    del split
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_names_come_back_as_they_were():
    names = ["a/b.png", "", "é/\u202e.png", "\udcff\udc80.jpg", "x" * 5000]
    assert list(sent(travel.Names.of(names))) == names


def test_workers_read_the_shards_that_this_process_reads(tmp_path):
    path = latents_in(tmp_path / "z", [9, 5, 8])
    split = latents.build(path=path, held_out=0.1).train
    here = list(itertools.islice(batches(split, batch_size=6, seed=1), 8))
    apart = batches(split, batch_size=6, seed=1, workers=2)
    try:
        for a, b in zip(here, apart, strict=False):
            assert a.keys() == b.keys() == {"x", "label", "id"}
            assert all(np.array_equal(a[k], b[k]) for k in a)
    finally:
        apart.close()


def test_shards_are_one_data_set_and_opened_when_they_are_needed(tmp_path):
    one = latents.build(path=latents_in(tmp_path / "one", [22]), held_out=0.25)
    many = latents.build(path=latents_in(tmp_path / "many", [9, 5, 8]), held_out=0.25)
    assert many.shape == one.shape
    assert len(many.train) == len(one.train)
    assert sent(many.train).data._maps == {}
    assert set(many.train.data._maps) == {0}  # its first row has been looked at
    examples = [split[i] for split in (many.train, many.held_out) for i in range(len(split))]
    values = {float(example["x"].flat[0]): example["label"] for example in examples}
    rows = [*range(9), *range(5), *range(8)]  # within a shard
    assert values == {float(k): row % 3 for k, row in enumerate(rows)}


def spoil(root, how):
    if how == "one file beside shards":
        np.save(root / "latents.npy", np.zeros((3, 2, 2, 1), np.float32))
    elif how == "labels of one shard missing":
        (root / "labels-001.npy").unlink()
    elif how == "labels of no shard":
        np.save(root / "labels-9.npy", np.arange(3))
    elif how == "labels of all shards in one file":
        np.save(root / "labels.npy", np.arange(22))
    elif how == "too few labels in a shard":
        np.save(root / "labels-001.npy", np.arange(4))
    elif how == "a shard of another shape":
        np.save(root / "latents-001.npy", np.zeros((5, 2, 3, 1), np.float32))
    elif how == "a shard of another type":
        np.save(root / "latents-001.npy", np.zeros((5, 2, 2, 1), np.float16))
    elif how == "a truncated shard":
        data = (root / "latents-001.npy").read_bytes()
        (root / "latents-001.npy").write_bytes(data[:-4])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("one file beside shards", "one or the other"),
        ("labels of one shard missing", "'labels-001.npy' is missing"),
        ("labels of no shard", "'labels-9.npy' belongs to none"),
        ("labels of all shards in one file", "'labels.npy' belongs to none"),
        ("too few labels in a shard", r"4 labels in .*labels-001.npy'; expected 5"),
        ("a shard of another shape", "latents-001.npy"),
        ("a shard of another type", "latents-001.npy"),
        ("a truncated shard", "latents-001.npy.* truncated"),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(tmp_path, how, says):
    root = pathlib.Path(latents_in(tmp_path / "z", [9, 5, 8]))
    spoil(root, how)
    with pytest.raises(config.UserError, match=says):
        latents.build(path=str(root), held_out=0.25)
