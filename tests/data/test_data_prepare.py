"""Raw files become the same records however often the work is interrupted and whoever does it."""

import dataclasses
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dit import prepare
from dit.config import resolve
from dit.data import records
from dit.data.prepare import parts, progress
from dit.data.sources import folder
from dit.data.sources import records as records_source
from dit.types import UserError


def made(out, source, *argv, size=8, workers=0):
    """The manifest of what the command makes, which it says is whole."""
    argv = [f"--source={source}", f"--size={size}", f"--out={out}", f"--workers={workers}", *argv]
    assert prepare.main(argv) == 0
    assert prepare.main([f"--out={out}", "--check"]) == 0
    assert not (out / ".work").exists()
    return records.read_manifest(out)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(out):
    """All that is in a directory, as hashes."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


def read(out):
    """``{id: example}`` of both splits."""
    found = {}
    for split in tfds.builder_from_directory(out).as_data_source().values():
        found |= {tuple(map(int, r["id"])): r for r in split}
    return found


def pictures_in(path, n=40, captions=True):
    """A folder of ``n`` pictures with captions."""
    path.mkdir()
    for i in range(n):
        Image.fromarray(hostile.noise(i)).save(path / f"{i:03}.png")
        if captions:
            (path / f"{i:03}.txt").write_text(f"picture {i}\nnumber {i}\n")
    return path


@pytest.fixture
def drawn(tmp_path):
    return pictures_in(tmp_path / "in")


def test_hostile_pictures_are_listed_and_odd_ones_converted_as_the_folder_source_does(tmp_path):
    source, plain = tmp_path / "in", tmp_path / "plain"
    source.mkdir(), plain.mkdir()
    for name, (content, wrong) in hostile.PICTURES.items():
        (source / name).write_bytes(content)
        if wrong is None and not name.endswith((".eps", ".npy")):
            (plain / name).write_bytes(content)
    manifest = made(tmp_path / "out", source, "--held-out=0.3")
    broken = {b["name"]: b["reason"] for b in lines(tmp_path / "out" / "broken.jsonl")}
    expected = {n: wrong for n, (_, wrong) in hostile.PICTURES.items() if wrong is not None}
    assert set(broken) == set(expected)
    for name, part in expected.items():
        assert part in broken[name], name
    assert manifest["counts"]["broken"] == len(expected)
    found = read(tmp_path / "out")
    assert len(found) == len(hostile.PICTURES) - len(expected) - 1
    same = folder.build(path=str(plain), size=8, held_out=0.3)
    names = sorted(p.name for p in plain.iterdir())
    for split in (same.train, same.held_out):
        for i, row in enumerate(split.rows):
            name = names[row]
            words = hashlib.sha256(hostile.PICTURES[name][0]).digest()[:8]
            record = found[tuple(np.frombuffer(words, ">u4").tolist())]
            np.testing.assert_array_equal(record["image"], split[i]["x"][0], name)
            with Image.open(plain / name) as image:
                size = image.size if name == "turned.jpg" else image.size[::-1]
            assert tuple(record["size"]) == size


def test_hostile_tars_are_listed_and_what_is_good_of_them_is_kept(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name, (content, _) in hostile.TARS.items():
        (source / name).write_bytes(content)
    manifest = made(tmp_path / "out", source, "--held-out=0.3", "--classes=4")
    broken = {b["name"]: b["reason"] for b in lines(tmp_path / "out" / "broken.jsonl")}
    for name, (_, wrong) in hostile.TARS.items():
        assert (name in broken) == (wrong is not None), name
        assert wrong is None or wrong in broken[name]
    for name, (_, wrong) in (hostile.EXAMPLES | hostile.MEMBERS).items():
        assert (f"whole.tar/{name}" in broken) == (wrong is not None), name
        assert wrong is None or wrong in broken[f"whole.tar/{name}"], name
    good = [members for members, wrong in hostile.EXAMPLES.values() if wrong is None]
    assert sum(s["records"] for s in manifest["splits"].values()) == len(good) + 1
    assert manifest["fields"]["classes"] == 4
    said = sorted(
        (r["label"], *(c.decode() for c in r["caption"])) for r in read(tmp_path / "out").values()
    )
    assert said == [(0, "x", "y"), (1, "b"), (2, "c"), (3, "first", "second")]
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_a_folder_has_classes_or_captions(tmp_path, caplog):
    for name in ("b", "a"):
        pictures_in(tmp_path / name, n=4, captions=False)
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("b", "a")):
        (tmp_path / name).rename(tmp_path / "in" / name)
        Image.fromarray(hostile.noise(99 + i)).save(tmp_path / "in" / name / "x.png")
    out = tmp_path / "out"
    manifest = made(out, tmp_path / "in", "--held-out=0.3")
    assert manifest["classes"] == ["a", "b"]
    assert tfds.builder_from_directory(out).info.features["label"].names == ["a", "b"]
    listed = [{"file": "a/x.png", "caption": "an x"}, {"file": "b/x.png", "captions": ["b", "x"]}]
    listed += [{"file": "a/x.png", "caption": "again"}, {"file": "../a.png", "caption": "out"}, []]
    written = "".join(json.dumps(each) + "\n" for each in listed) + "{\n" + "9" * 2**21 + "\n"
    (tmp_path / "in" / "captions.jsonl").write_text(written)
    manifest = made(tmp_path / "two", tmp_path / "in", "--fields=caption", "--held-out=0.5")
    assert manifest["classes"] is None
    said = [[c.decode() for c in r["caption"]] for r in read(tmp_path / "two").values()]
    assert sorted(said) == [["an x", "again"], ["b", "x"]]
    broken = {b["name"]: b["reason"] for b in lines(tmp_path / "two" / "broken.jsonl")}
    assert "no picture in the folder" in broken["captions.jsonl:4"]
    assert "expected an object" in broken["captions.jsonl:5"]
    assert "JSON" in broken["captions.jsonl:6"]
    assert "expected at most" in broken["captions.jsonl:7"]
    assert broken["a/000.png"] == "it has no caption"
    made(tmp_path / "three", f"folder:{tmp_path / 'in'},labels=true", "--held-out=0.3")
    assert "2 of 10 examples have a caption, which is less than half" in caplog.text
    with pytest.raises(UserError, match="no example has a"):
        made(tmp_path / "four", tmp_path / "in", "--fields=label", "--held-out=0.3")


def test_parquet(tmp_path):
    good = [hostile.png() for _ in range(70)]
    table = {
        "image": [{"bytes": b, "path": "x.png"} for b in [*good, b"not a picture"]] + [None],
        "text": [f"text {i}" for i in range(72)],
        "cls": [*range(70), 0, -1],
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(table), tmp_path / "in" / "0.parquet", row_group_size=40)
    (tmp_path / "in" / "1.parquet").write_bytes(b"PAR1" + bytes(99))
    manifest = made(tmp_path / "out", tmp_path / "in", "--held-out=0.1")
    assert sum(s["records"] for s in manifest["splits"].values()) == 70
    assert (manifest["fields"]["classes"], manifest["fields"]["captions"]) == (70, True)
    broken = {b["name"]: b["reason"] for b in lines(tmp_path / "out" / "broken.jsonl")}
    assert set(broken) == {"0.parquet/1/30", "0.parquet/1/31", "1.parquet"}
    with pytest.raises(UserError, match="has the columns image, text, cls and not 'words'"):
        made(tmp_path / "no", f"parquet:{tmp_path / 'in' / '0.parquet'},caption=words")


def test_sizes_have_shards_of_their_own_and_their_statistics_are_exact(tmp_path, drawn, caplog):
    for i in range(20):
        Image.fromarray(hostile.noise(500 + i, 9, 30)).save(drawn / f"wide{i:02}.png")
    out = tmp_path / "out"
    argv = "--fields=none", "--held-out=0.2"
    manifest = made(out, drawn, *argv, size="8x8,8x16")
    assert {(s["split"], s["bucket"]) for s in manifest["shards"]} == {
        (split, bucket) for split in records.SPLITS for bucket in (0, 1)
    }
    source = records_source.build(path=str(out))
    assert source.shapes == ((1, 8, 8, 3), (1, 8, 16, 3))
    assert len(source.train) + len(source.held_out) == 60
    with_empty = made(tmp_path / "more", drawn, *argv, size="8x8,16x8,8x16,3x90")
    assert "no record has the size 16x8" in caplog.text
    assert with_empty["fields"] == manifest["fields"]
    assert with_empty["shards"] == manifest["shards"]
    buckets = [source.bucket(b) for b in (0, 1)]
    x = [b.train[i]["x"] for b in buckets for i in range(len(b.train))]
    assert [a.shape for a in x] == [(1, 8, 8, 3)] * len(buckets[0].train) + [(1, 8, 16, 3)] * len(
        buckets[1].train
    )
    pixels = np.concatenate([a.reshape(-1, 3) for a in x]).astype(np.float64)
    np.testing.assert_allclose(manifest["statistics"]["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(manifest["statistics"]["std"], pixels.std(0), rtol=1e-9)


def test_what_is_held_out_follows_from_the_ids_alone(tmp_path, drawn):
    made(tmp_path / "out", drawn, "--held-out=0.25")
    held = tfds.builder_from_directory(tmp_path / "out").as_data_source("held_out")
    ids = {int(r["id"][0]) << 32 | int(r["id"][1]) for r in held}
    every = {i << 32 | j for i, j in read(tmp_path / "out")}
    assert ids == {i for i in every if i < 2**62}
    (drawn / "000.png").unlink(), (drawn / "000.txt").unlink()
    made(tmp_path / "less", drawn, "--held-out=0.25")
    less = tfds.builder_from_directory(tmp_path / "less").as_data_source("held_out")
    assert {int(r["id"][0]) << 32 | int(r["id"][1]) for r in less} == ids & {
        i << 32 | j for i, j in read(tmp_path / "less")
    }
    made(tmp_path / "none", drawn, "--held-out=0")
    assert len(tfds.builder_from_directory(tmp_path / "none").as_data_source("held_out")) == 1


def test_copies_are_dropped_and_told_but_not_what_only_looks_plain(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        picture = coarse.resize((96, 96), Image.Resampling.BICUBIC)
        picture.save(source / f"a{i:02}.png")
        if i < 4:
            picture.resize((70, 70)).save(source / f"b{i:02}.jpg", quality=60)
        if i < 2:
            brighter = picture.point(lambda v: min(255, v + 3))
            brighter.save(source / f"c{i:02}.webp", quality=80)
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (20, 20), colour).save(source / f"d{i}.png")
    out = tmp_path / "out"
    manifest = made(out, source, "--drop-copies", "--held-out=0.2", size=64)
    dropped = {c["name"]: c["copy_of"] for c in lines(out / "copies.jsonl")}
    assert dropped == {
        **{f"b{i:02}.jpg": f"a{i:02}.png" for i in range(4)},
        **{f"c{i:02}.webp": f"a{i:02}.png" for i in range(2)},
    }
    assert sum(s["records"] for s in manifest["splits"].values()) == 16


def test_an_interrupted_run_goes_on_and_nothing_is_made_twice(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("dit.data.prepare.inputs.folder.FILES", 8)
    monkeypatch.setattr(prepare, "Options", lambda **k: OPTIONS(**k | {"shard_bytes": 4000}))
    whole = tmp_path / "whole"
    manifest = made(whole, drawn, "--held-out=0.2")
    assert len(manifest["shards"]) > 3
    expected = content(whole)
    steps = []
    for module, name in ((parts, "write"), (os, "replace")):
        real = getattr(module, name)

        def counted(*args, real=real):
            steps.append(args)
            if len(steps) == stop:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(module, name, counted)
    stop = -1
    made(tmp_path / "again", drawn, "--held-out=0.2")
    total, argv = len(steps), ("--held-out=0.2",)
    for stop in range(3, total, 5):
        out = tmp_path / f"stop{stop}"
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            made(out, drawn, *argv)
        assert not (out / records.MANIFEST).exists()
        with pytest.raises(UserError, match="has not finished there"):
            records.read_manifest(out)
        first, stop = len(steps), -1
        steps.clear()
        made(out, drawn, *argv)
        assert content(out) == expected
        assert len(steps) <= total - first + 6


OPTIONS = prepare.Options


@pytest.mark.slow
def test_several_processes_and_machines_make_the_same(tmp_path, drawn):
    argv = [f"--source={drawn}", "--size=8", "--held-out=0.2"]
    made(tmp_path / "one", drawn, "--held-out=0.2")
    made(tmp_path / "two", drawn, "--held-out=0.2", workers=2)
    command = [sys.executable, "-m", "dit.prepare", *argv]
    command += [f"--out={tmp_path / 'shared'}", "--workers=0"]
    machines = [subprocess.Popen([*command, f"--share={i}/2"]) for i in (1, 0)]
    assert [m.wait(timeout=500) for m in machines] == [0, 0]
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "shared")


@pytest.mark.slow
def test_a_picture_that_kills_its_process_is_listed(tmp_path, drawn):
    (drawn / "killer.png").write_bytes(hostile.PNG + b"killer")
    code = (
        "import os, sys\nfrom dit import prepare\nfrom dit.data.prepare import parts\n"
        "real = parts.attempt\n"
        "def attempt(item, options):\n"
        "    if item.picture.endswith(b'killer'): os.kill(os.getpid(), 9)\n"
        "    return real(item, options)\n"
        "parts.attempt = attempt\n"
        "if __name__ == '__main__': prepare.main(sys.argv[1:])\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    out = tmp_path / "out"
    argv = [f"--source={drawn}", "--size=8", f"--out={out}", "--workers=1", "--held-out=0.2"]
    subprocess.run([sys.executable, script, *argv], check=True, timeout=100)
    assert lines(out / "broken.jsonl") == [
        {"name": "killer.png", "reason": "the process that read it was killed, twice"}
    ]
    assert len(read(out)) == 40


@pytest.mark.slow
def test_killed_at_random_moments_the_records_are_the_same(tmp_path):
    source = pictures_in(tmp_path / "in", n=600)
    made(tmp_path / "whole", source, "--held-out=0.2")
    expected = content(tmp_path / "whole")
    out, rng = tmp_path / "out", random.Random(0)
    argv = ["--source", source, "--size=8", "--out", out, "--workers=2", "--held-out=0.2"]
    command = [sys.executable, "-m", "dit.prepare", *argv]
    killed = 0
    for _ in range(10):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=rng.uniform(0.5, 3.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        if (out / records.MANIFEST).exists():
            assert content(out).items() >= expected.items()
    assert killed
    subprocess.run(command, check=True, timeout=100)
    assert content(out) == expected


def test_other_options_do_not_go_on_with_these(tmp_path, drawn):
    out = tmp_path / "out"
    made(out, drawn, "--held-out=0.2")
    before = content(out)
    made(out, drawn, "--held-out=0.2")
    assert content(out) == before
    with pytest.raises(UserError, match=r"held_out was 0.2, now 0.3"):
        made(out, drawn, "--held-out=0.3")
    Image.new("RGB", (9, 9)).save(drawn / "new.png")
    with pytest.raises(UserError, match="content was"):
        made(out, drawn, "--held-out=0.2")
    with pytest.raises(UserError, match="holds other files"):
        made(drawn, drawn)


def test_a_changed_byte_is_found_by_check(tmp_path, drawn, capsys):
    out = tmp_path / "out"
    shard = out / made(out, drawn, "--held-out=0.2")["shards"][0]["name"]
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    assert prepare.main([f"--out={out}", "--check"]) == 1
    assert f"{shard.name} is not what manifest.json says" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size=8"], "expected --source"),
        (["--source=nowhere"], "expected --source=... and --size"),
        (["--source=nowhere", "--size=8"], "no folder 'nowhere'"),
        (["--source=tfds:nothing_at_all", "--size=8"], "no TFDS data set"),
        (["--source=webdataset:nowhere/*.tar", "--size=8"], "no tars in"),
        (["--source=folder:x,wrong=1", "--size=8"], "unknown keyword 'wrong'"),
        (["--source=x", "--size=8x"], "expected 256, or HEIGHTxWIDTH"),
        (["--source=x", "--size=8x8,16x16"], "different aspect ratios"),
        (["--source=x", "--size=8", "--share=2/2"], "expected I/N"),
        (["--source=x", "--size=8", "--held-out=2"], "expected a number"),
        (["--source=x", "--size=8", "--config.steps=2"], "belongs to dit.train"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        prepare.main([*argv, "--out=out"])
    assert not (tmp_path / "out").exists()


def test_progress_says_how_far_and_how_long():
    assert progress.line("reading", 0, 100, 0, 0, 0, 1.0) == "reading: 0%, 0 records, 0/s"
    half = progress.line("reading", 50, 100, 20, 60, 2, 30.0)
    assert half == "reading: 50%, 60 records, 2/s, 2 broken, 0:00:50 left"
    assert progress.line("writing", 9, 9, 0, 90, 0, 3700.0).endswith(", in 1:01:40")


def test_a_job_is_small_in_the_processes_that_do_it(tmp_path, drawn):
    source = resolve("data.prepare.inputs", "folder", path=str(drawn))
    job = parts.Job(source, prepare.Options(sizes=((8, 8),)), tmp_path)
    assert source.parts
    assert pickle.loads(pickle.dumps(job)).input == dataclasses.replace(source, parts=[])
