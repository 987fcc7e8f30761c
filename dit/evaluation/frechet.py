"""The Frechet distance between Gaussians fitted to two sets of features.

    d^2 = |m_1 - m_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2))

(Dowson & Landau 1982; Heusel et al. 2017, eq. 6). ``S_1 S_2`` is similar to the symmetric, positive
``S_1^(1/2) S_2 S_1^(1/2)``, so two symmetric eigendecompositions in float64 give the trace, without the
matrix square root of a nearly singular product. As in the literature, *the square is reported*.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from dit.types import UserError


def distance(
    mean_1: Float[np.ndarray, " d"],
    cov_1: Float[np.ndarray, "d d"],
    mean_2: Float[np.ndarray, " d"],
    cov_2: Float[np.ndarray, "d d"],
) -> float:
    """The squared Frechet distance of two Gaussians; never below zero."""
    values, vectors = np.linalg.eigh(np.asarray(cov_1, np.float64))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ np.asarray(cov_2, np.float64) @ root)
    cross = np.sum(np.sqrt(np.maximum(product, 0)))
    gap = np.sum((np.asarray(mean_1, np.float64) - mean_2) ** 2)
    return float(max(0.0, gap + np.trace(cov_1) + np.trace(cov_2) - 2 * cross))


def moments(
    features: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and unbiased covariance, in float64. UserError for fewer than two rows."""
    if len(features) < 2:
        raise UserError(f"got {len(features)} samples; expected 2 or more for a covariance")
    features = np.asarray(features, np.float64)
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def between(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The squared Frechet distance of the Gaussians fitted to two sets of features.

    With ``S_1 = A^T A`` and ``S_2 = B^T B`` for centred rows A and B, the trace of ``(S_1 S_2)^(1/2)``
    is the sum of the singular values of ``A B^T``: less work with fewer rows than features.
    Raises UserError for fewer than two rows.
    """
    if min(len(a), len(b)) >= a.shape[1] or min(len(a), len(b)) < 2:
        return distance(*moments(a), *moments(b))
    means, rows = [], []
    for x in (np.asarray(a, np.float64), np.asarray(b, np.float64)):
        means.append(x.mean(0))
        rows.append((x - means[-1]) / np.sqrt(len(x) - 1))
    cross = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    spread = sum(np.sum(x**2) for x in rows)
    return float(max(0.0, np.sum((means[0] - means[1]) ** 2) + spread - 2 * cross))


FIGURES = (
    "frechet",
    "frechet_matched",
    "frechet_matched_error",
    "frechet_floor",
    "frechet_floor_error",
    "frechet_count",
)


def figures(
    samples: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m d"],
    *,
    repeats: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """How far ``samples`` are from ``real``, and what sampling noise alone would give: ``FIGURES``.

    ``frechet``: between all of both. The estimate is biased upwards by about ``1/n + 1/m``, so two of
    them can be compared only at equal counts. ``frechet_matched`` is between ``frechet_count = min(n,
    m // 2)`` samples and as many real examples, and ``frechet_floor`` between these and as many other
    real ones. Both are means over ``repeats`` random splits. The names ending in ``_error`` are standard
    deviations over the splits, which show how far off one such comparison may be. Raises UserError for
    fewer than two samples or four real examples.
    """
    count = min(len(samples), len(real) // 2)
    if count < 2:
        raise UserError(
            f"got {len(samples)} samples and {len(real)} real ones; expected 2 and 4 or more, for a "
            "Frechet distance and its floor"
        )
    rng = np.random.default_rng(seed)
    matched, floor = [], []
    with threadpool_limits(1):  # threads do not help with small matrices
        for _ in range(repeats):
            one, other = rng.permutation(len(real))[: 2 * count].reshape(2, count)
            drawn = rng.permutation(len(samples))[:count]
            floor.append(between(real[one], real[other]))
            matched.append(between(samples[drawn], real[other]))
    found = (
        between(samples, real),
        *(f(v) for v in (matched, floor) for f in (np.mean, np.std)),
        count,
    )
    return {name: float(value) for name, value in zip(FIGURES, found, strict=True)}
