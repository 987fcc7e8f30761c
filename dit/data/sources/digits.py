"""Scikit-learn's handwritten digits (``dit.scenes.digits``): 1,797 real images of 8 x 8.

Pixels are counts 0..16, scaled here to uint8 0..255 with rounding. The split is seeded and
stratified: each class gives its share of held-out images to within one.
"""

from __future__ import annotations

import numpy as np

from dit.data.source import ArraySplit, Source, digest, identity, stratified
from dit.scenes.digits import read
from dit.types import Seed, UserError, Whole


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
