"""The Frechet distance of samples from the reference in each network's features; its square.

In InceptionV3's it is FID (Heusel et al. 2017), in DINOv2's FD-DINOv2 (Stein et al. 2023), and of clips
a distance of their frames. It sees mean and covariance alone, and is biased upwards by about one over
the number of samples: compare at equal counts.
"""

from __future__ import annotations

import numpy as np

from dit.evaluation.collect import GROUPS, Moments
from dit.evaluation.features import Features
from dit.evaluation.scores import About, Need, Plan, Sets, by_network, named, with_errors

SETS = ("samples", "reference")


def build():
    """Of every network that is given."""
    return plan


def plan(about: About) -> Plan:
    """See ``evaluation.scores``."""
    names = {one.name: named("fid", "fd", one.name) for one in about.networks}

    def measure(sets: Sets) -> dict[str, float]:
        found = {}
        for network, name in names.items():
            ours, theirs = (sets[of][network, "features", "moments"] for of in SETS)
            found[name], found[f"{name}_error"] = of_moments(ours, theirs)
        return found

    needs = tuple(need for one in about.networks for need in moments(one, "features", SETS))
    return Plan(needs, with_errors(list(names.values())), measure, by_network(names))


def moments(network: Features, output: str, of: tuple[str, ...]) -> tuple[Need, ...]:
    """Moments of sets of pictures: of the samples by groups."""
    key = (network.name, output, "moments")

    def grouped(samples: int, size: int, frames: int) -> Moments:
        return Moments.empty(samples, size, GROUPS)

    def whole(samples: int, size: int, frames: int) -> Moments:
        return Moments.empty(samples, size)

    return tuple(Need(key, grouped if one == "samples" else whole, (one,)) for one in of)


def of_moments(ours: Moments, theirs: Moments) -> tuple[float, float]:
    """The squared distance, and its standard error over draws of the samples, NaN without groups.

    To first order the distance moves by ``2 (m_1 - m_2) dm + tr((I - T) dS)`` where ``T`` transports
    the samples' Gaussian to the other: ``T S_1 T = S_2``. The error is that of the mean of this over
    the groups of samples, so it is itself uncertain by a quarter.
    """
    mean, cov = ours.total()
    other, spread = theirs.total()
    values, vectors = np.linalg.eigh(cov)
    there = values > 1e-10 * max(values.max(), 1e-300)
    values, vectors = values[there], vectors[:, there]
    scale = np.sqrt(values)
    inner, axes = np.linalg.eigh(scale[:, None] * (vectors.T @ spread @ vectors) * scale)
    sqrt = np.sqrt(np.maximum(inner, 0))
    gap = mean - other
    value = gap @ gap + np.trace(cov) + np.trace(spread) - 2 * sqrt.sum()
    if len(ours.count) < 2:
        return float(max(0.0, value)), float("nan")
    half = (vectors / scale) @ (axes * np.sqrt(sqrt))
    slope = np.eye(len(mean)) - half @ half.T
    moves = []
    for n, m, m2 in zip(ours.count, ours.mean, ours.m2, strict=True):
        off = m - mean
        moves.append(2 * off @ gap + np.sum(slope * (m2 / n)) + off @ slope @ off)
    return float(max(0.0, value)), float(np.std(moves, ddof=1) / np.sqrt(len(moves)))
