"""One judge for many sets of samples: fitted once to the real images, then quick.

``evaluate_images`` says more of one set; this is for sweeps, where only the figures that are compared
are needed: ``accuracy``, the share classified as the label asked for, and ``frechet``, the squared
Frechet distance to the held-out images in the classifier's features. The latter is biased upwards by
about one over the number of samples, so compare sets of one size only.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from dit.evaluation import Real, check_samples, classifier, frechet, gather
from dit.evaluation.classifier import Classifier
from dit.evaluation.images import LIMIT
from dit.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """``judge(samples, labels) -> {"accuracy", "frechet"}``; made by ``judge_of``."""

    source: Real
    classifier: Classifier
    features: Float[np.ndarray, "m d"]

    def __call__(
        self, samples: UInt8[np.ndarray, "n f h w c"], labels: Int[np.ndarray, "n"]
    ) -> dict[str, float]:
        """Raises UserError for samples that are not like the data."""
        check_samples(samples, labels, self.source.shape)
        return {
            "accuracy": self.classifier.accuracy(samples, labels),
            "frechet": frechet.between(self.classifier.features(samples), self.features),
        }

    def of_real(self, count: int, seed: int = 0) -> dict[str, float]:
        """What ``count`` real training images score: as good as samples of that number can be."""
        x, label = gather(self.source.train, LIMIT)
        if not 2 <= count <= len(x):
            raise UserError(f"got count={count}; expected 2 to {len(x)}, of which there are images")
        rows = np.random.default_rng(seed).permutation(len(x))[:count]
        return self(x[rows], label[rows])


def judge_of(source: Real) -> Judge:
    """The judge of a source of labelled images; UserError for clips and for data without labels."""
    if source.shape[0] != 1 or source.num_classes is None:
        raise UserError(
            f"got data of shape {source.shape} with {source.num_classes} classes; expected labelled "
            "images, of one frame"
        )
    judge = classifier.fit(*gather(source.train, LIMIT))
    return Judge(source, judge, judge.features(gather(source.held_out, LIMIT)[0]))
