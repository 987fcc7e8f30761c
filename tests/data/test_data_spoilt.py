"""Numbers that are not finite, and labels outside the classes, are named where they are read."""

import numpy as np
import pytest

from dit.data.pipeline import batches
from dit.data.source import ArraySplit, Source
from dit.data.sources import latents
from dit.types import UserError

BAD = {"nan": np.nan, "inf": np.inf, "minus inf": -np.inf}


def files(root, value, moments=False, dtype=np.float16):
    """Two shards; row 3 of the second holds one bad value."""
    x = np.ones((20, 2, 2, 4), dtype)
    x[13, 1, 0, 3 if moments else 2] = value
    np.save(root / "latents-0.npy", x[:10])
    np.save(root / "latents-1.npy", x[10:])
    return str(root)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("value", BAD)
def test_a_latent_that_is_not_finite_is_named_by_file_and_row(tmp_path, value, moments, dtype):
    path = files(tmp_path, BAD[value], moments, dtype)
    source = latents.build(path=path, moments=moments, held_out=0.1, split_seed=1)
    split = source.train if 13 in source.train.rows else source.held_out
    with pytest.raises(UserError, match=r"row 3 of .*latents-1.npy' holds 1 values of 16"):
        next(batches(split, batch_size=len(split), seed=0))


def test_negative_standard_deviations_are_named(tmp_path):
    path = files(tmp_path, -3.0, moments=True)
    source = latents.build(path=path, moments=True, held_out=0.1, split_seed=1)
    with pytest.raises(UserError, match=r"row 3 of .*latents-1.npy' .* negative .*logarithms"):
        next(batches(source.train, batch_size=len(source.train), seed=0))


@pytest.mark.parametrize("value", BAD)
def test_an_array_that_is_not_finite_is_named_by_its_example(value):
    x = np.zeros((9, 1, 2, 2, 1), np.float32)
    x[4, 0, 1, 1] = BAD[value]
    with pytest.raises(UserError, match=r"example 4 of mine/train holds 1 values of 4"):
        next(batches(ArraySplit(x, None, "mine/train"), batch_size=9, seed=0))


LABELS = {
    "too large": [0, 1, 5],
    "negative": [0, 1, -1],
    "the null class": [0, 1, 3],
    "64 bits": [0, 1, 2**40],
    "fractions": [0.0, 1.0, 2.0],
}


@pytest.mark.parametrize("what", LABELS)
@pytest.mark.parametrize("part", ["train", "held_out"])
def test_labels_outside_the_classes_are_refused_in_any_split(what, part):
    x = np.zeros((3, 1, 2, 2, 1), np.uint8)
    splits = {name: ArraySplit(x, np.arange(3), f"mine/{name}") for name in ("train", "held_out")}
    Source(**splits, shape=(1, 2, 2, 1), num_classes=3, fingerprint="mine")
    splits[part] = ArraySplit(x, np.array(LABELS[what]), f"mine/{part}")
    with pytest.raises(UserError, match=f"mine/{part}"):
        Source(**splits, shape=(1, 2, 2, 1), num_classes=3, fingerprint="mine")


@pytest.mark.parametrize("classes", [None, 3])
def test_labels_and_classes_come_together_or_not_at_all(classes):
    x = np.zeros((3, 1, 2, 2, 1), np.uint8)
    label = None if classes else np.arange(3)
    split = ArraySplit(x, label, "mine")
    with pytest.raises(UserError, match=f"num_classes={classes}"):
        Source(split, split, shape=(1, 2, 2, 1), num_classes=classes, fingerprint="mine")


@pytest.mark.parametrize("classes", [2, 0, None])
def test_labels_of_latents_outside_the_classes_are_refused(tmp_path, classes):
    np.save(tmp_path / "latents.npy", np.zeros((4, 2, 2, 1), np.float32))
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2, -1 if classes is None else 0]))
    with pytest.raises(UserError, match=r"label (2|0|-1) in row"):
        latents.build(path=str(tmp_path), held_out=0.5, num_classes=classes)


def test_classes_without_labels_are_refused(tmp_path):
    np.save(tmp_path / "latents.npy", np.zeros((4, 2, 2, 1), np.float32))
    with pytest.raises(UserError, match=r"num_classes=1000, but there are no labels in"):
        latents.build(path=str(tmp_path), held_out=0.5, num_classes=1000)
