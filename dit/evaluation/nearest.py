"""Distance to the nearest training image: are the samples copies?

A generator that memorised its training set scores well on every other figure here. Real held-out
images show how near to the training set a *new* image may fairly come.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped
from scipy.spatial.distance import cdist

ROWS = 256  # at a time, to bound the memory of the distance matrix


def distances(
    images: Shaped[np.ndarray, "n ..."], train: Shaped[np.ndarray, "m ..."]
) -> Float[np.ndarray, "n"]:
    """Root-mean-square pixel difference (in 0..255) to the nearest of ``train``; 0 for a copy."""
    x, y = images.reshape(len(images), -1), train.reshape(len(train), -1)
    blocks = [cdist(x[i : i + ROWS], y).min(1) for i in range(0, len(x), ROWS)]
    return np.concatenate(blocks) / np.sqrt(x.shape[1])


def compare(images: np.ndarray, held_out: np.ndarray, train: np.ndarray) -> dict[str, float]:
    """How near ``images`` and real ``held_out`` ones are to ``train``.

    ``nearest``, ``nearest_real``: the medians; ``nearest_ratio``: of them. ``copies``: the share of
    images that are nearer than 99% of the held-out ones; 0.01 for new real images, 1 for copies.
    """
    ours, real = distances(images, train), distances(held_out, train)
    return {
        "nearest": float(np.median(ours)),
        "nearest_real": float(np.median(real)),
        "nearest_ratio": float(np.median(ours) / max(np.median(real), 1e-9)),
        "copies": float(np.mean(ours < np.quantile(real, 0.01))),
    }
