"""What is kept of features while pictures go by: moments, rows, class probabilities or cosines.

Each has ``add(ids, x)``, for rows ``x`` and the numbers of their samples, in any order, and sums in
float64 on the host: a score is the same on any number of devices, up to the rounding of the features.
Only ``Rows`` grows with the number of pictures. ``arrays()`` and the class method ``of(arrays)`` are
inverse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from dit.types import UserError

GROUPS = 10  # of samples, from whose differences a Frechet distance's error is estimated
SPLITS, SHUFFLE = (
    10,
    2020,
)  # of the Inception score (Salimans et al. 2016); as torch-fidelity deals them
Ids = Int[np.ndarray, " b"]


@runtime_checkable
class Collector(Protocol):
    """See the module."""

    def add(self, ids: Ids, x: Float[np.ndarray, "b d"]) -> None: ...

    def arrays(self) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(eq=False)
class Moments:
    """Count, mean and centred second moment of each of some groups of samples, dealt out at random.

    ``count`` is 0 where nobody knows it, of moments from a file. Frames of a clip are of one sample.
    """

    count: Float[np.ndarray, " g"]
    mean: Float[np.ndarray, "g d"]
    m2: Float[np.ndarray, "g d d"]
    samples: int  # that are dealt out

    @classmethod
    def empty(cls, samples: int, size: int, groups: int = 1) -> Moments:
        shape = (min(groups, samples), size)
        return cls(np.zeros(shape[0]), np.zeros(shape), np.zeros((*shape, size)), samples)

    @classmethod
    def known(cls, mean: Float[np.ndarray, " d"], cov: Float[np.ndarray, "d d"]) -> Moments:
        """Of a file. The count is taken as 0 and ``total`` gives the moments as they are."""
        return cls(np.zeros(1), np.asarray(mean, float)[None], np.asarray(cov, float)[None], 0)

    def __post_init__(self):
        groups = len(self.count)
        dealt = np.random.default_rng(0).permutation(self.samples) if groups > 1 else None
        self._group = np.zeros(self.samples, int) if dealt is None else dealt % groups

    def add(self, ids: Ids, x: Float[np.ndarray, "b d"]) -> None:
        """The update of Chan et al. (1979), which does not cancel."""
        of = self._group[ids]
        for g in np.unique(of):
            rows = np.asarray(x[of == g], np.float64)
            n, old = len(rows), self.count[g]
            mean = rows.mean(0)
            gap, centred = mean - self.mean[g], rows - mean
            self.m2[g] += centred.T @ centred + np.outer(gap, gap) * (old * n / (old + n))
            self.mean[g] += gap * (n / (old + n))
            self.count[g] = old + n

    def total(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Mean and unbiased covariance of all. UserError for fewer than two rows."""
        n = self.count.sum()
        if self.samples == 0:
            return self.mean[0], self.m2[0]
        if n < 2:
            raise UserError(f"got {int(n)} pictures; expected 2 or more for a covariance")
        mean = (self.count / n) @ self.mean
        gap = self.mean - mean
        m2 = self.m2.sum(0) + np.einsum("g,gi,gj->ij", self.count, gap, gap, optimize=True)
        return mean, m2 / (n - 1)

    def arrays(self) -> dict[str, np.ndarray]:
        samples = np.array(self.samples)
        return {"count": self.count, "mean": self.mean, "m2": self.m2, "samples": samples}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Moments:
        return cls(arrays["count"], arrays["mean"], arrays["m2"], int(arrays["samples"]))


@dataclasses.dataclass(eq=False)
class Rows:
    """All rows, in the order of their samples: ``each`` of them a sample."""

    x: Float[np.ndarray, "n d"]
    each: int = 1

    @classmethod
    def empty(cls, samples: int, size: int, each: int = 1) -> Rows:
        return cls(np.full((samples * each, size), np.nan, np.float32), each)

    def add(self, ids: Ids, x: Float[np.ndarray, "b d"]) -> None:
        """``ids`` hold each sample ``each`` times, one after the other."""
        self.x[ids * self.each + np.arange(len(ids)) % self.each] = x

    def arrays(self) -> dict[str, np.ndarray]:
        return {"x": self.x, "each": np.array(self.each)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Rows:
        return cls(arrays["x"], int(arrays["each"]))


@dataclasses.dataclass(eq=False)
class Probabilities:
    """Of each of ``SPLITS`` parts: rows, the sum of the softmax ``p`` of logits, and of ``p log p``."""

    count: Float[np.ndarray, " s"]
    p: Float[np.ndarray, "s c"]
    negentropy: Float[np.ndarray, " s"]
    samples: int

    @classmethod
    def empty(cls, samples: int, size: int) -> Probabilities:
        parts = min(SPLITS, samples)
        return cls(np.zeros(parts), np.zeros((parts, size)), np.zeros(parts), samples)

    def __post_init__(self):
        parts, n = len(self.count), self.samples
        order, self._part = np.random.RandomState(SHUFFLE).permutation(n), np.zeros(n, int)
        for i in range(parts):
            self._part[order[i * n // parts : (i + 1) * n // parts]] = i

    def add(self, ids: Ids, x: Float[np.ndarray, "b d"]) -> None:
        x = np.asarray(x, np.float64)
        x = x - x.max(1, keepdims=True)
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        p, part = np.exp(log_p), self._part[ids]
        np.add.at(self.count, part, 1)
        np.add.at(self.p, part, p)
        np.add.at(self.negentropy, part, (p * log_p).sum(1))

    def scores(self) -> Float[np.ndarray, " s"]:
        """``exp(mean KL(p || mean p))`` of each part."""
        mean = self.p / self.count[:, None]
        entropy = -(mean * np.log(np.maximum(mean, 1e-300))).sum(1)
        return np.exp(self.negentropy / self.count + entropy)

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"count": self.count, "p": self.p, "negentropy": self.negentropy}
        return found | {"samples": np.array(self.samples)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Probabilities:
        names = ("count", "p", "negentropy")
        return cls(*(arrays[name] for name in names), int(arrays["samples"]))


@dataclasses.dataclass(eq=False)
class Cosines:
    """The cosine of each sample's features and a vector that it is paired with."""

    target: Float[np.ndarray, "n d"]
    cosine: Float[np.ndarray, " n"]

    @classmethod
    def empty(cls, target: Float[np.ndarray, "n d"]) -> Cosines:
        target = np.asarray(target, np.float64)
        unit = target / np.maximum(np.linalg.norm(target, axis=1, keepdims=True), 1e-12)
        return cls(unit, np.full(len(unit), np.nan))

    def add(self, ids: Ids, x: Float[np.ndarray, "b d"]) -> None:
        x = np.asarray(x, np.float64)
        norm = np.maximum(np.linalg.norm(x, axis=1), 1e-12)
        self.cosine[ids] = (x * self.target[ids]).sum(1) / norm

    def arrays(self) -> dict[str, np.ndarray]:
        return {"target": self.target, "cosine": self.cosine}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Cosines:
        return cls(arrays["target"], arrays["cosine"])


KINDS = {kind.__name__.lower(): kind for kind in (Moments, Rows, Probabilities, Cosines)}
