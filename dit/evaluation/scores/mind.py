"""MIND, the Monge Inception Distance of samples from the reference (Berthet et al. 2026).

``3 d / (n M) sum_{l, i} (a_{l, i} - b_{l, i})^2`` over ``M`` random directions of unit length: a and b
are the projections of n samples and of n pictures of the reference, sorted, in features of ``d``
channels (arXiv:2605.06797; the factor and the rest are as torch-fidelity's repository has them). It is
``3 d`` times the squared sliced 2-Wasserstein distance. It is biased upwards, by less as n grows:
compare at equal counts. Of the larger set n are drawn.

To first order a sample moves the distance by the potential of the transport along each line, whose
derivative is ``2 (a - b)``: the standard error is that of its mean, the reference being fixed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dit.evaluation.scores import About, Need, Plan, Sets, by_network, named, with_errors
from dit.evaluation.scores.kd import SETS, rows
from dit.types import Count, Seed

AT_ONCE = 50  # directions


def build(*, projections: Count = 1000, seed: Seed = 2020):
    """Of every network, along so many lines."""

    def plan(about: About) -> Plan:
        """See ``evaluation.scores``."""
        names = {one.name: named("mind", "mind", one.name) for one in about.networks}

        def measure(sets: Sets) -> dict[str, float]:
            found = {}
            for network, name in names.items():
                ours, theirs = (sets[of][network, "features", "rows"] for of in SETS)
                value, error = distance(ours.x, theirs.x, projections, seed, ours.each)
                found |= {name: value, f"{name}_error": error}
            return found

        needs = tuple(Need((one.name, "features", "rows"), rows) for one in about.networks)
        settings = {"projections": projections, "seed": seed}
        return Plan(needs, with_errors(list(names.values())), measure, by_network(names), settings)

    return plan


def distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    projections: int,
    seed: int,
    each: int = 1,
) -> tuple[float, float]:
    """The distance, and its standard error over draws of x, of which ``each`` rows are of one sample."""
    rng, n, d = np.random.RandomState(seed), min(len(x), len(y)), x.shape[1]
    chosen = [np.arange(n) if len(z) == n else rng.choice(len(z), n, replace=False) for z in (x, y)]
    x, y = (z[i].astype(np.float64) for z, i in zip((x, y), chosen, strict=True))
    total, potential = 0.0, np.zeros(n)
    for start in range(0, projections, AT_ONCE):
        lines = rng.normal(size=(min(AT_ONCE, projections - start), d))
        lines /= np.linalg.norm(lines, axis=1, keepdims=True)
        a, b = lines @ x.T, np.sort(lines @ y.T, axis=1)
        order = np.argsort(a, axis=1)
        a = np.take_along_axis(a, order, axis=1)
        gap = a - b
        total += np.sum(gap**2)
        rise = np.diff(a, axis=1) * (gap[:, 1:] + gap[:, :-1])  # of the potential, by trapezia
        rise = np.concatenate([np.zeros((len(a), 1)), np.cumsum(rise, axis=1)], axis=1)
        np.add.at(potential, order, rise)
    scale = 3 * d / projections
    moves = scale * (potential - potential.mean())
    samples = np.unique(chosen[0] // each, return_inverse=True)[1]
    moves = np.bincount(samples, weights=moves)
    if len(moves) < 2:
        return float(scale * total / n), float("nan")
    error = np.sqrt(np.sum(moves**2) * len(moves) / (len(moves) - 1)) / n
    return float(scale * total / n), float(error)
