"""Augmentations: pure functions ``(example, rng) -> example`` on numpy arrays.

The pipeline gives each position of the stream its own ``np.random.Generator``, a function of
(seed, position), so an augmentation never depends on the batch size, the workers or a restart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from dit.data.source import Example, Transform
from dit.types import UserError

PLACED = ("x", "std", "concat", "known")  # arrays (f, h, w, ...), pixel by pixel beside each other


def moved(example: Example, move: Callable[[np.ndarray], np.ndarray]) -> Example:
    """The example with ``move`` applied to all that belongs to single pixels."""
    return {**example, **{k: move(example[k]) for k in PLACED if k in example}}


def random_flip(example: Example, rng: np.random.Generator) -> Example:
    """Mirror left and right with probability one half; every frame of a clip alike."""
    return example if rng.random() < 0.5 else moved(example, lambda x: x[:, :, ::-1])


def random_colors(example: Example, rng: np.random.Generator) -> Example:
    """The channels of uint8 pictures in a random order, each to a power between 2/3 and 3/2.

    Where pictures are few, their colours are too: an autoencoder must not learn those by heart.
    """
    x = example["x"]
    x = x[..., rng.permutation(x.shape[-1])]
    power = 1.5 ** rng.uniform(-1, 1, x.shape[-1])
    table = np.rint(255 * (np.arange(256) / 255)[:, None] ** power).astype(np.uint8)
    return {
        **example,
        "x": np.take_along_axis(table, x.reshape(-1, x.shape[-1]), 0).reshape(x.shape),
    }


def augmentations(flip: bool, colors: bool) -> tuple[Transform, ...]:
    """``random_flip`` and ``random_colors``, where they are asked for."""
    return (random_flip,) * flip + (random_colors,) * colors


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A ``size x size`` window at a uniformly random place, the same in every frame of a clip."""

    size: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width = example["x"].shape[1:3]
        if min(height, width) < self.size:
            raise UserError(f"got a {height} x {width} image to crop; expected {self.size} or more")
        top, left = (int(rng.integers(side - self.size + 1)) for side in (height, width))
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        return moved(example, lambda x: x[:, rows, columns])


def sample_posterior(example: Example, rng: np.random.Generator) -> Example:
    """Draw a latent from a Gaussian encoder: ``x + std * noise``, in place of ``x`` and ``std``."""
    rest = {k: v for k, v in example.items() if k != "std"}
    x = example["x"]
    noise = rng.standard_normal(x.shape, np.float32)
    return {**rest, "x": (x + example["std"] * noise).astype(x.dtype)}
