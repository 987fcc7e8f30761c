"""Scikit-learn's handwritten digits: 1,797 real 8 x 8 images that ship with the library.

The UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin & Kaynak 1998). Pixels are
counts 0..16, scaled here to uint8 0..255 with rounding. The split is seeded and stratified: each
class gives its share of held-out images to within one.
"""

from __future__ import annotations

import numpy as np

from dit.config import package_files
from dit.data.source import ArraySplit, Source, digest, identity, stratified
from dit.types import Seed, UserError, Whole


def read() -> tuple[np.ndarray, np.ndarray]:
    """``(images, labels)``: counts (1797, 64) and classes, from scikit-learn's file.

    The file is read without importing the library, which would add 1.5 s to every start.
    """
    missing = "the digits come with scikit-learn, which is not installed: pip install it"
    file = package_files("sklearn", missing) / "datasets/data/digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return rows[:, :64], rows[:, 64]


def build(*, held_out: Whole = 297, split_seed: Seed = 0) -> Source:
    """Digits, ``held_out`` of them for evaluation: by default 1,500 train and 297 held out."""
    images, labels = read()
    if not 10 <= held_out <= len(images) - 10:
        raise UserError(
            f"got held_out={held_out}; expected 10 to {len(images) - 10} of {len(images)}"
        )
    x = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8, 1)
    label = labels.astype(np.int32)
    order = stratified(label, split_seed)
    kept, aside = np.sort(order[held_out:]), np.sort(order[:held_out])
    name = identity("digits", held_out=held_out, split_seed=split_seed, content=digest(x, label))
    return Source(
        train=ArraySplit(x[kept], label[kept], f"{name}/train"),
        held_out=ArraySplit(x[aside], label[aside], f"{name}/held_out"),
        shape=(1, 8, 8, 1),
        num_classes=10,
        fingerprint=name,
    )
