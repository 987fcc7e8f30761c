"""Pictures of a folder go to the size with the nearest aspect ratio, known from their headers."""

import numpy as np
import pytest
from PIL import Image

from dit.data import aspects, pictures
from dit.data.pipeline import batches
from dit.data.source import bucket_sizes
from dit.data.sources import folder
from dit.types import UserError

SIZES = ((8, 8), (12, 6), (6, 12))
WIDE, TALL, SQUARE = (40, 22), (20, 38), (30, 28)  # width and height, as Pillow has them


def save(path, size, colour, turn=None):
    exif = Image.Exif()
    if turn is not None:
        exif[pictures.ORIENTATION] = turn
    Image.new("RGB", size, colour).save(path, exif=exif, quality=100)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes of ten pictures of each aspect ratio, and wide ones that lie on their side."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, level in (("dark", 20), ("light", 220)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            for j, size in enumerate((WIDE, TALL, SQUARE)):
                save(tmp_path / "images" / name / f"{i}-{j}.png", size, (level, j, i))
            save(tmp_path / "images" / name / f"{i}-3.jpg", WIDE, (level,) * 3, turn=6)  # is tall
    return tmp_path / "images"


def build(root, **more):
    return folder.build(path=str(root), **{"size": SIZES, "held_out": 0.2, **more})


def test_each_picture_goes_to_the_nearest_aspect_ratio(root):
    source = build(root)
    assert source.shapes == ((1, 8, 8, 3), (1, 12, 6, 3), (1, 6, 12, 3))
    assert bucket_sizes(source.train) == (16, 32, 16)  # each class and ratio gives its share
    assert bucket_sizes(source.held_out) == (4, 8, 4)
    for split in (source.train, source.held_out):
        at = np.cumsum([0, *bucket_sizes(split)])
        for i, j in ((0, 2), (2, 0)):  # bucket, and the mark of its pictures in their green
            for k in range(at[i], at[i + 1]):
                x = split[k]["x"]
                assert x.shape == source.shapes[i]
                assert (x[..., 1] == j).all()
                assert split[k]["label"] == (x[0, 0, 0, 0] > 100)


def test_a_run_sees_every_picture_once_in_an_epoch(root):
    source = build(root, flip=True)
    stream = batches(source.train, batch_size=4, seed=0)
    seen = []
    for _ in range(64):
        bucket, batch = stream.bucket, next(stream)
        assert batch["x"].shape == (4, *source.shapes[bucket])
        seen += [bucket] * 4
    assert [seen.count(i) for i in range(3)] == [64, 128, 64]


def test_one_size_is_as_a_square_always_was(root):
    one, same = build(root, size=8), build(root, size=((8, 8),))
    assert one.fingerprint != build(root).fingerprint
    assert one.train.bucket_sizes == (64,)
    for i in (0, 31, 63):
        np.testing.assert_array_equal(one.train[i]["x"], same.train[i]["x"])


def test_headers_are_read_once(root, monkeypatch):
    monkeypatch.setattr(aspects, "CHUNK", 7)
    first, opened = build(root), []
    monkeypatch.setattr(pictures, "upright_size", opened.append)
    assert build(root).train.bucket_sizes == first.train.bucket_sizes
    assert not opened


@pytest.mark.parametrize("spoilt", [b"", b"rubbish"])
def test_a_spoilt_cache_is_read_anew(root, tmp_path, spoilt):
    first = build(root)
    (kept,) = (tmp_path / "cache" / "dit").iterdir()
    kept.write_bytes(spoilt)
    assert build(root).train.bucket_sizes == first.train.bucket_sizes
    assert np.load(kept).shape == (80, 2)


def test_a_cache_that_cannot_be_written_is_no_hindrance(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build(root).train.bucket_sizes == (16, 32, 16)


def test_a_file_without_a_header_is_named(root):
    (root / "dark" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"bad\.png"):
        build(root)


@pytest.mark.parametrize("size", [(), ((8, 8), (16, 16))], ids=str)
def test_sizes_that_no_picture_can_choose_between_are_refused(root, size):
    with pytest.raises(UserError, match="different aspect ratios"):
        build(root, size=size)


def test_a_size_that_no_picture_goes_to_is_refused_by_name(root):
    with pytest.raises(UserError, match=r"nearest to 24x6 .*8x8: 20, 12x6: 40, 6x12: 20\)"):
        build(root, size=(*SIZES, (24, 6)))


def test_twice_as_wide_is_as_far_from_square_as_twice_as_high(root):
    for i, size in enumerate(((141, 100), (142, 100), (100, 141), (100, 142))):
        save(root / f"{i}.png", size, (0, 0, 0))
    files = [(f"{i}.png", i) for i in range(4)]
    found = aspects.nearest(root, files, ((10, 10), (10, 20), (20, 10)))
    np.testing.assert_array_equal(found, [0, 1, 0, 2])  # the square root of 2 is between
