"""The kernel distance of samples from the reference: KID in InceptionV3's features, KDD in DINOv2's.

The unbiased squared MMD with the kernel ``(x y / d + 1)^3`` (Binkowski et al. 2018), the mean over
random subsets, drawn as torch-fidelity does. It may be below zero. The standard error is the deviation
over the subsets, scaled to all samples. Subsets of more than half of the samples are too much the same:
then it is that over random halves of the samples (the delete-half jackknife), the reference being fixed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dit.evaluation.collect import Rows
from dit.evaluation.scores import About, Need, Plan, Sets, by_network, named, with_errors
from dit.types import Count, Seed

SETS = ("samples", "reference")


def build(*, subsets: Count = 100, size: Count = 1000, seed: Seed = 2020):
    """Of every network; ``size`` rows a subset, or as many as there are."""

    def plan(about: About) -> Plan:
        """See ``evaluation.scores``."""
        names = {one.name: named("kid", "kd", one.name) for one in about.networks}

        def measure(sets: Sets) -> dict[str, float]:
            found = {}
            for network, name in names.items():
                ours, theirs = (sets[of][network, "features", "rows"].x for of in SETS)
                found[name], found[f"{name}_error"] = distance(ours, theirs, subsets, size, seed)
            return found

        needs = tuple(Need((one.name, "features", "rows"), rows) for one in about.networks)
        settings = {"subsets": subsets, "size": size, "seed": seed}
        return Plan(needs, with_errors(list(names.values())), measure, by_network(names), settings)

    return plan


def rows(samples: int, size: int, frames: int) -> Rows:
    """All rows of so many samples."""
    return Rows.empty(samples, size, frames)


def distance(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], subsets: int, size: int, seed: int
) -> tuple[float, float]:
    """The mean over the subsets, and its standard error."""
    size, rng = min(size, len(x), len(y)), np.random.RandomState(seed)

    def some(z: np.ndarray, size: int) -> np.ndarray:
        return z[rng.choice(len(z), size, replace=False)].astype(np.float64)

    found = [mmd(some(x, size), some(y, size)) for _ in range(subsets)]
    if subsets < 2:
        return found[0], np.nan
    error, half = np.std(found, ddof=1) * np.sqrt(size / len(x)), len(x) // 2
    if size > half >= 2:
        fixed = some(y, size)
        halves = [mmd(some(x, half), fixed) for _ in range(subsets)]
        error = np.std(halves, ddof=1) * np.sqrt(half / (len(x) - half))
    return float(np.mean(found)), float(error)


def mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The unbiased estimate of the squared MMD of these rows."""
    own, d = 0.0, x.shape[1]
    for z in (x, y):
        n = len(z)
        kernel = (z @ z.T / d + 1) ** 3
        own += (kernel.sum() - np.trace(kernel)) / (n * (n - 1))
    return float(own - 2 * ((x @ y.T / d + 1) ** 3).mean())
