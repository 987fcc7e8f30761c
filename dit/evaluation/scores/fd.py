"""The Frechet distance of samples from the reference in each network's features; its square.

In InceptionV3's it is FID (Heusel et al. 2017), in DINOv2's FD-DINOv2 (Stein et al. 2023), and of clips
a distance of their frames. It sees mean and covariance alone, and is biased upwards by about one over
the number of samples: compare at equal counts.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

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
            found[name], found[f"{name}_error"] = measured(sets, network, "features")
        return found

    def moves(sets: Sets) -> dict[str, np.ndarray]:
        return {name: moved(sets, network, "features") for network, name in names.items()}

    needs = tuple(need for one in about.networks for need in moments(one, "features", SETS))
    lacks = with_errors(list(names.values()))
    return Plan(needs, lacks, measure, by_network(names), moves=moves)


def moments(network: Features, output: str, of: tuple[str, ...]) -> tuple[Need, ...]:
    """Moments of sets of pictures: of the samples by groups."""
    key = (network.name, output, "moments")

    def grouped(samples: int, size: int, frames: int) -> Moments:
        return Moments.empty(samples, size, GROUPS)

    def whole(samples: int, size: int, frames: int) -> Moments:
        return Moments.empty(samples, size)

    return tuple(Need(key, grouped if one == "samples" else whole, (one,)) for one in of)


@dataclasses.dataclass(frozen=True)
class Transport:
    """From the samples' Gaussian to the reference's: what their squared distance is made of.

    To first order it moves by ``2 gap dm + tr((I - T) dS)`` with the samples' mean and covariance, where
    ``gap = m_1 - m_2`` and ``T`` is the map with ``T S_1 T = S_2``.
    """

    mean: Float[np.ndarray, " d"]
    gap: Float[np.ndarray, " d"]
    value: float  # the squared distance
    half: Float[np.ndarray, "d k"]  # T = half half^T

    @classmethod
    def between(cls, ours: Moments, theirs: Moments) -> Transport:
        """By two symmetric eigendecompositions, see ``evaluation.frechet``."""
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
        half = (vectors / scale) @ (axes * np.sqrt(sqrt))
        return cls(mean, gap, float(max(0.0, value)), half)

    def moves(self, x: Float[np.ndarray, "n e d"]) -> Float[np.ndarray, " n"]:
        """What each sample adds, if it came once more, times their number; ``e`` rows are of one."""
        off = np.asarray(x, np.float64) - self.mean
        there = off @ self.half
        return (2 * off @ self.gap + (off**2).sum(-1) - (there**2).sum(-1)).mean(-1)

    def error(self, ours: Moments) -> float:
        """The standard error of the distance over draws of the samples, NaN without groups of them.

        That of the mean of the groups' moves, so it is itself uncertain by a quarter.
        """
        if len(ours.count) < 2:
            return float("nan")
        slope = np.eye(len(self.mean)) - self.half @ self.half.T
        moves = []
        for n, m, m2 in zip(ours.count, ours.mean, ours.m2, strict=True):
            off = m - self.mean
            moves.append(2 * off @ self.gap + np.sum(slope * (m2 / n)) + off @ slope @ off)
        return float(np.std(moves, ddof=1) / np.sqrt(len(moves)))


def measured(sets: Sets, network: str, output: str) -> tuple[float, float]:
    """The squared distance of the samples from the reference, and its standard error."""
    ours, theirs = (sets[of][network, output, "moments"] for of in SETS)
    there = Transport.between(ours, theirs)
    return there.value, there.error(ours)


def moved(sets: Sets, network: str, output: str) -> Float[np.ndarray, " n"]:
    """By how much each sample moves that distance, see ``Plan.moves``."""
    ours, theirs = (sets[of][network, output, "moments"] for of in SETS)
    rows = sets["samples"][network, output, "rows"]
    x = rows.x.reshape(-1, rows.each, rows.x.shape[1])
    return Transport.between(ours, theirs).moves(x)
