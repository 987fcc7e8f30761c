"""A folder is listed once, whatever is in it; and what is not read is told."""

import collections
import itertools
import logging
import os
import types

import numpy as np
import pytest
from PIL import Image

from dit.data import pictures
from dit.data.pipeline import batches
from dit.data.sources import folder
from dit.types import UserError


def save(path, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), "white").save(path, **kwargs)


@pytest.fixture
def built(tmp_path, caplog):
    """``built()``: the source of the pictures in ``tmp_path``, and the warnings."""

    def build(**kwargs):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = folder.build(path=str(tmp_path), size=4, **{"held_out": 0.5, **kwargs})
        return source, [record.getMessage() for record in caplog.records]

    return build


def test_a_folder_is_listed_in_linear_time(tmp_path, monkeypatch, built):
    for c in range(40):
        (tmp_path / f"c{c}").mkdir()
        for i in range(3):
            (tmp_path / f"c{c}" / f"{i}.png").touch()
    listed, scandir = collections.Counter(), os.scandir

    def counted(path):
        listed[str(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    source, warnings = built()
    assert source.num_classes == 40
    assert not warnings
    assert len(listed) == 41
    assert max(listed.values()) <= 2  # the root: once for its files, once for its folders


def test_many_classes_are_not_compared_with_each_other(tmp_path, monkeypatch, built):
    """Sorted and looked up: a search through a list for each file would be a million comparisons."""
    compared = 0

    class Folder(str):
        """A name that counts how often it is compared."""

        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        def __lt__(self, other):
            nonlocal compared
            compared += 1
            return str.__lt__(self, other)

    class Name(str):
        def partition(self, sep):
            first, *rest = super().partition(sep)
            return Folder(first), *rest

    entry = types.SimpleNamespace(stat=lambda: types.SimpleNamespace(st_size=1))
    files = [(Name(f"class {i % 1000:06}/{i:06}.png"), entry) for i in range(2000)]
    monkeypatch.setattr(folder, "walk", lambda root: iter(files))
    assert built(held_out=0.3)[0].num_classes == 1000
    assert 2000 <= compared < 50_000


def test_every_suffix_that_is_read_is_found(tmp_path, built):
    assert {
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
    } <= pictures.suffixes()
    for i, suffix in enumerate(sorted(pictures.suffixes())):
        (tmp_path / f"{i}{suffix if i % 2 else suffix.upper()}").touch()
    source, warnings = built()
    assert len(source.train) + len(source.held_out) == len(pictures.suffixes())
    assert not warnings


@pytest.mark.parametrize("suffix", [".jfif", ".avif", ".jp2", ".tga", ".qoi"])
def test_pictures_of_rarer_kinds_are_read(tmp_path, built, suffix):
    if suffix not in pictures.suffixes():
        pytest.skip("this Pillow was built without it")
    for name in "ab":
        save(tmp_path / f"{name}{suffix}")
    assert (built()[0].train[0]["x"] > 250).all()


def test_files_that_are_passed_over_are_counted(tmp_path, built):
    for name in ("a.png", "b.png", "c.heic", "d.HEIC", "notes.txt", "LICENSE", ".hidden.png"):
        (tmp_path / name).touch()
    source, (warning,) = built()
    assert len(source.train) == len(source.held_out) == 1
    assert "4 files" in warning
    assert "2 '.heic', " in warning
    assert "1 '.txt'" in warning
    assert "1 ''" in warning


def test_links_to_class_folders_are_followed_and_loops_are_not(tmp_path, built):
    root, elsewhere = tmp_path, tmp_path.parent / f"{tmp_path.name} elsewhere"
    for i in range(2):
        save(root / "cats" / f"{i}.png")
        save(elsewhere / "deep" / f"{i}.png")
    (root / "dogs").symlink_to(elsewhere)
    source, warnings = built()
    assert source.num_classes == 2
    assert not warnings
    assert {source.train[i]["label"] for i in range(2)} == {0, 1}
    (root / "cats" / "again").symlink_to(root)
    (root / "cats" / "gone.png").symlink_to(root / "nothing")
    again, warnings = built()
    assert again.fingerprint == source.fingerprint
    assert ["leads back" in w for w in warnings] == [True, False]
    assert "gone.png" in warnings[1]


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "validation", "test")])
def test_splits_that_are_read_as_classes_are_told(tmp_path, built, names):
    for name in names:
        for i in range(2):
            save(tmp_path / name / f"{i}.png")
    source, (warning,) = built()
    assert source.num_classes == len(names)
    assert f"{len(names)} classes" in warning
    assert all(repr(name) in warning for name in names)
    save(tmp_path / "cats" / "0.png")
    save(tmp_path / "cats" / "1.png")
    assert not built()[1]  # a class may be called so


def test_class_folders_without_pictures_are_told(tmp_path, built):
    for name in ("a", "b"):
        save(tmp_path / name / "0.png")
        save(tmp_path / name / "1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    source, warnings = built()
    assert source.num_classes == 2
    assert any("2 folders" in w and "'empty', 'texts'" in w for w in warnings)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_found_in_training_is_named(tmp_path, built, workers):
    for i in range(12):
        save(tmp_path / f"{i}.jpg")
    whole = (tmp_path / "7.jpg").read_bytes()
    (tmp_path / "7.jpg").write_bytes(whole[: len(whole) // 2])
    source, _ = built(held_out=0.1)
    it = batches(source.train, batch_size=2, seed=0, workers=workers)
    with pytest.raises(UserError, match=r"7\.jpg"):
        list(itertools.islice(it, 6))
    it.close()


def test_order_and_labels_are_those_of_sorted_paths(tmp_path, built):
    names = ["b/2.png", "b/1/0.png", "b/10.png", "a.c/0.png", "a/0.png", "a/B.png", "c/x.png"]
    for name in names:
        save(tmp_path / name)
    source, _ = built(held_out=0.4)
    files = source.train.names
    assert [files[i] for i in range(len(files))] == sorted(names, key=lambda n: n.split("/"))
    classes = sorted({name.split("/")[0] for name in names})
    assert [classes[c] for c in source.train.label] == [
        files[i].split("/")[0] for i in range(len(files))
    ]
    assert np.array_equal(np.sort(np.r_[source.train.rows, source.held_out.rows]), np.arange(7))


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch, built):
    save(tmp_path / "a" / "0.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        built()
