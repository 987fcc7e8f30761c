"""Videos become records of clips, which are read, mirrored and encoded as pictures are."""

import json
import shutil

import filmed
import hostile
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_data_prepare_latents import W, halves

from dit import encode, prepare
from dit.data import records
from dit.data.pipeline import batches
from dit.data.sources import records as source_of
from dit.types import UserError

SIZE = f"{filmed.HEIGHT}x{filmed.WIDTH}"
ARGV = ("--frames=4", "--held-out=0.4", "--workers=0")


def made(source, out, *argv, size=SIZE):
    argv = [f"--source={source}", f"--out={out}", f"--size={size}", *ARGV, *argv]
    assert prepare.main(argv) == 0
    assert prepare.main([f"--out={out}", "--check"]) == 0
    return records.read_manifest(out)


def broken(out):
    found = map(json.loads, (out / "broken.jsonl").read_text().splitlines())
    return {each["name"]: each["reason"] for each in found}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Good ones of each kind, with a caption each, and bad ones."""
    root = tmp_path_factory.mktemp("films")
    for kind, suffix in filmed.SUFFIXES.items():
        (root / f"{kind}.{suffix}").write_bytes(filmed.video(kind, n=8 + len(kind)))
    for kind in ("GIF", "WEBP"):
        (root / f"{kind}.{kind.lower()}").write_bytes(filmed.animation(kind))
    for path in list(root.iterdir()):
        (root / f"{path.stem}.txt").write_text(f"a bar that grows\nsaid of {path.stem}\n")
    whole = (root / "matroska.mkv").read_bytes()
    (root / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (root / "empty.mp4").write_bytes(b"")
    (root / "short.mp4").write_bytes(filmed.video("mp4", n=3))
    (root / "sound.mp4").write_bytes(filmed.sound_alone())
    (root / "still.gif").write_bytes(filmed.animation("GIF", n=1))
    (root / "uneven.webm").write_bytes(filmed.video("webm", n=4, times=[0, 40, 80, 200]))
    (root / "silent.mp4").write_bytes(filmed.video("mp4", n=5))  # without a caption
    (root / "picture.png").write_bytes(hostile.png())
    return root


BAD = {
    "cut.mkv": "cut off",
    "empty.mp4": "cannot be decoded",
    "short.mp4": "has 3 frames; expected 4",
    "sound.mp4": "no video",
    "still.gif": "has 1 frames",
    "uneven.webm": "rate varies",
    "silent.mp4": "has no caption",
}


def test_each_video_gives_its_clips_and_what_is_no_clip_is_listed(tmp_path, films, caplog):
    out = tmp_path / "out"
    manifest = made(films, out, "--clips=3")
    found = broken(out)
    assert set(found) == set(BAD)
    for name, says in BAD.items():
        assert says in found[name], name
    assert "1 files" in caplog.text
    assert ".png" in caplog.text
    lengths = {"mp4": 11, "matroska": 16, "webm": 12, "avi": 11, "GIF": 10, "WEBP": 10}
    source = source_of.build(path=str(out), flip=True)
    assert source.shape == (4, filmed.HEIGHT, filmed.WIDTH, 3)
    seen = []
    for split in (source.train, source.held_out):
        names = set()
        for i in range(len(split)):
            example = split[i]
            kind = example["caption"][1].removeprefix("said of ")
            names.add(kind)
            seen.append((kind, *filmed.numbers(example["x"])))
        seen.append(names)
    one, other = (each for each in seen if isinstance(each, set))
    assert one
    assert other
    assert not one & other  # the clips of a video are in one split
    clips = [(k, *range(i, i + 4)) for k, n in lengths.items() for i in range(0, min(n, 12) - 3, 4)]
    assert sorted(each for each in seen if isinstance(each, tuple)) == sorted(clips)
    stream = batches(source.train, batch_size=4, seed=0)
    batch = next(stream)
    assert batch["x"].shape == (4, *source.shape)
    stream.close()
    x = np.concatenate([split[i]["x"] for split in (source.train,) for i in range(len(split))])
    pixels = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(manifest["statistics"]["mean"], pixels.mean(0), rtol=1e-12)
    by_tfds = tfds.builder_from_directory(out).as_data_source("train")
    np.testing.assert_array_equal(np.stack(by_tfds[1]["video"]), source.train[1]["x"])


def test_tars_of_videos_and_folders_that_are_classes(tmp_path, films):
    members = [(p.name, p.read_bytes()) for p in sorted(films.iterdir()) if p.suffix != ".png"]
    (tmp_path / "films.tar").write_bytes(hostile.tar(members))
    one = made(tmp_path / "films.tar", tmp_path / "tar", "--fps=12.5")
    two = made(films, tmp_path / "folder", "--fps=12.5")
    assert [s["sha256"] for s in one["shards"]] == [s["sha256"] for s in two["shards"]]
    source = source_of.build(path=str(tmp_path / "tar"))
    for split in (source.train, source.held_out):
        for i in range(len(split)):
            assert filmed.numbers(split[i]["x"]) == [0, 2, 4, 6]
    bad = {f"films.tar/{name.partition('.')[0]}" for name in BAD}
    assert set(broken(tmp_path / "tar")) == bad
    assert "at 12.5 a second" in broken(tmp_path / "tar")["films.tar/uneven"]
    for step, name in ((2, "down"), (6, "up")):
        (tmp_path / "classes" / name).mkdir(parents=True)
        shutil.copy(films / "mp4.mp4", tmp_path / "classes" / name / "a.mp4")
        shutil.copy(films / "webm.webm", tmp_path / "classes" / name / "b.webm")
        own = filmed.animation("GIF", step=step)
        (tmp_path / "classes" / name / "c.gif").write_bytes(own)
    manifest = made(tmp_path / "classes", tmp_path / "out", "--drop-copies", "--held-out=0")
    assert manifest["classes"] == ["down", "up"]
    assert manifest["counts"]["copies"] == 3


def test_latents_of_clips(tmp_path, films, monkeypatch):
    monkeypatch.setattr(encode, "resolve", lambda room, name, **k: halves())
    argv = ("--codec=halves", "--flip", "--encoded=float32", "--batch=3")
    manifest = made(films, tmp_path / "out", *argv)
    made(films, tmp_path / "plain")
    source, plain = (source_of.build(path=str(tmp_path / p), flip=True) for p in ("out", "plain"))
    shape = (4, filmed.HEIGHT // 2, filmed.WIDTH // 2, 5)
    assert source.shapes == (shape,)
    assert manifest["fields"]["latents"]["frames"] == 4
    every = []
    for i in range(len(source.train)):
        example, x = source.train[i], plain.train[i]["x"]
        sides = [x[None], x[None, :, :, ::-1]]
        wanted = [
            each[0] for side in sides for each in halves().moments({"w": W}, jnp.asarray(side))
        ]
        given = (example["x"], example["std"], *example["mirrored"].values())
        for want, got in zip(wanted, given, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        every.append(np.asarray(wanted[0]).reshape(-1, 5))
    mean = np.concatenate(every).mean(0)
    np.testing.assert_allclose(manifest["statistics"]["mean"], mean, rtol=1e-4, atol=1e-5)
    batch = batches(source.train, batch_size=2, seed=0).look([0, 1])
    assert batch["x"].shape == (2, *shape)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--fps=8"], "got --fps without --frames"),
        (["--frames=4", "--fps=8", "--stride=2"], "--fps and --stride"),
        (["--frames=0"], "expected"),
        (["--frames=4", "--source=parquet:x"], "kind parquet, which gives pictures alone"),
        (["--frames=4"], "no videos in"),
        ([], "Of videos, give --frames=N"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, argv, message):
    root = tmp_path / "in"
    root.mkdir()
    (root / ("a.png" if "--frames=4" in argv else "a.mp4")).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        prepare.main([f"--source={root}", "--size=8", f"--out={tmp_path / 'out'}", *argv])
    assert not (tmp_path / "out").exists()
