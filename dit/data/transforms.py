"""Augmentations: pure functions ``(example, rng) -> example`` on numpy arrays.

The pipeline gives each position of the stream its own ``np.random.Generator``, a function of
(seed, position), so an augmentation never depends on the batch size, the workers or a restart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dit.data.source import Example
from dit.types import UserError

Transform = Callable[[Example, np.random.Generator], Example]


def random_flip(example: Example, rng: np.random.Generator) -> Example:
    """Mirror left and right with probability one half; every frame of a clip alike."""
    if rng.random() < 0.5:
        return example
    return {**example, "x": example["x"][:, :, ::-1]}


def random_crop(size: int) -> Transform:
    """A ``size x size`` window at a uniformly random place, the same in every frame of a clip."""

    def crop(example: Example, rng: np.random.Generator) -> Example:
        height, width = example["x"].shape[1:3]
        if min(height, width) < size:
            raise UserError(f"got a {height} x {width} image; expected at least {size} for a crop")
        top, left = (int(rng.integers(side - size + 1)) for side in (height, width))
        return {**example, "x": example["x"][:, top : top + size, left : left + size]}

    return crop
