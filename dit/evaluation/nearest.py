"""Distance to the nearest training example: are the samples copies?

A generator that memorised its training set does well on every other figure here. Real held-out examples
show how close to the training set *new* ones come.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from dit.evaluation.parts import Figures, Part

BLOCK = 2**22  # float64 numbers held at a time, of either set
ENOUGH = 100  # fewer held-out examples than this make "nearer than 99% of them" meaningless


def distances(
    images: Shaped[np.ndarray, "n ..."], train: Shaped[np.ndarray, "m ..."]
) -> Float[np.ndarray, " n"]:
    """Root-mean-square pixel difference (in 0..255) to the nearest of ``train``; 0 for a copy."""
    x, y = images.reshape(len(images), -1), train.reshape(len(train), -1)
    rows = max(1, min(1024, BLOCK // x.shape[1]))
    best, which = np.full(len(x), np.inf), np.zeros(len(x), int)
    for j in range(0, len(y), rows):
        other = y[j : j + rows].astype(np.float64)
        squares = np.sum(other**2, 1)
        for i in range(0, len(x), rows):
            # |x - y|^2 without |x|^2, which is equal for all y
            score = squares - 2 * x[i : i + rows].astype(np.float64) @ other.T
            nearest = score.argmin(1)
            least = score[np.arange(len(score)), nearest]
            closer = np.flatnonzero(least < best[i : i + rows])
            best[i + closer], which[i + closer] = least[closer], j + nearest[closer]
    gaps = [np.mean((a.astype(np.float64) - y[k]) ** 2) for a, k in zip(x, which, strict=True)]
    return np.sqrt(gaps)


def nearer(
    ours: Float[np.ndarray, " n"], known: Float[np.ndarray, " m"]
) -> tuple[float, float, float]:
    """How often one of ``ours`` is less than one of ``known``, equal ones half, and its 95% interval.

    Mann and Whitney's statistic, as a test for copied data by Meehan et al. 2020 (eq. 1); the interval
    is that of DeLong et al. 1988.
    """

    def above(x, others):  # for each x, the share of others that are greater
        others = np.sort(others)
        left, right = (np.searchsorted(others, x, side) for side in ("left", "right"))
        return 1 - (left + right) / (2 * len(others))

    by_ours, by_known = above(ours, known), 1 - above(known, ours)
    share = float(by_ours.mean())
    variance = sum(x.var(ddof=1) / len(x) for x in (by_ours, by_known) if len(x) > 1)
    off = 1.96 * float(np.sqrt(variance))
    return share, max(share - off, 0.0), min(share + off, 1.0)


def part(
    train: np.ndarray,
    real: np.ndarray,
    count: int,
    prepare: Callable[[np.ndarray], np.ndarray],
    repeats: int = 20,
) -> Part:
    """How near ``count`` samples, prepared like the rest, and ``real`` examples are to ``train``.

    ``nearest``, ``nearest_real``: the median distances of samples and of held-out examples;
    ``nearest_ratio``: their ratio. ``nearest_ratio_error``: the standard deviation of that ratio for
    random halves of the held-out examples, of at most ``count`` each. ``copies``: the share of samples
    that are nearer than 99% of the held-out examples; 0.01 for new real examples, 1 for copies.
    ``memorised``: how often a sample is nearer than a held-out example; 0.5 for new real examples, more
    for a model that has learned its training data by heart (``nearer``).
    """
    known = distances(real, train)
    median, edge = float(np.median(known)), float(np.quantile(known, 0.01))
    each = min(count, len(real) // 2)
    halves = np.zeros((repeats, 2))
    if each and median:
        rng = np.random.default_rng(0)
        order = [rng.permutation(known)[: 2 * each] for _ in range(repeats)]
        halves = np.median(np.reshape(order, (repeats, 2, each)), axis=2)

    error = float(np.std(halves[:, 0] / halves[:, 1])) if halves.all() else np.nan

    def measure(samples: np.ndarray, labels: np.ndarray | None) -> Figures:
        ours = distances(prepare(samples), train)
        share, low, high = nearer(ours, known)
        return {
            "memorised": share,
            "memorised_low": low,
            "memorised_high": high,
            "nearest": float(np.median(ours)),
            "nearest_real": median,
            "nearest_ratio": float(np.median(ours)) / (median or np.nan),
            "nearest_ratio_error": error,
            "copies": float(np.mean(ours < edge)),
        }

    few = f"it needs {{}} held-out examples; there are {len(real)}"
    zero = "half or more of the held-out examples are in the training data"
    some = "a hundredth or more of the held-out examples are in the training data"
    lacks = {
        **dict.fromkeys(
            ("memorised", "memorised_low", "memorised_high"), few.format(2) * (not each)
        ),
        "nearest": "",
        "nearest_real": "",
        "nearest_ratio": "" if median else zero,
        "nearest_ratio_error": few.format(2) if not each else "" if halves.all() else zero,
        "copies": few.format(ENOUGH) if len(real) < ENOUGH else "" if edge else some,
    }
    return Part(lacks, measure)
