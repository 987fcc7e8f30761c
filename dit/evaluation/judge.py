"""One judge for many sets of samples: fitted once to the real images, then fast.

``evaluation_of`` says more about a single set. A judge is for sweeps, which need only the figures that
are compared: ``accuracy``, the share classified as the requested label, and ``frechet``, the squared
Frechet distance to the held-out images in the classifier's features. The latter is biased upwards by
about one over the number of samples, so compare only sets of one size.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from dit.evaluation import Real, check_samples, classifier, frechet, gather, reduced
from dit.evaluation.classifier import Classifier
from dit.evaluation.images import LIMIT
from dit.evaluation.parts import no_classifier
from dit.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """``judge(samples, labels) -> {"accuracy", "frechet"}``; ``judge_of`` builds one."""

    source: Real
    classifier: Classifier
    features: Float[np.ndarray, "m d"]

    def __call__(
        self, samples: UInt8[np.ndarray, "n f h w c"], labels: Int[np.ndarray, " n"]
    ) -> dict[str, float]:
        """Raises UserError for samples that are not shaped like the data."""
        check_samples(samples, labels, self.source)
        return self._score(reduced(samples), labels)

    def _score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The figures of images at the size of ``reduced``."""
        return {
            "accuracy": self.classifier.accuracy(images, labels),
            "frechet": frechet.between(self.classifier.features(images), self.features),
        }

    def of_real(self, count: int, seed: int = 0) -> dict[str, float]:
        """The figures of ``count`` real training images: the best that as many samples can reach."""
        x, label = gather(self.source.train, LIMIT)
        if not 2 <= count <= len(x):
            raise UserError(f"got count={count}; expected 2 to {len(x)}, the number of images")
        rows = np.random.default_rng(seed).permutation(len(x))[:count]
        return self._score(x[rows], label[rows])


def judge_of(source: Real) -> Judge:
    """The judge for a source of labelled images.

    Raises UserError for clips, and for data without labels, with a single class, or with fewer than two
    held-out images.
    """
    if source.shape[0] != 1:
        raise UserError(
            f"got clips of shape {source.shape}; expected images, of one frame, to judge"
        )
    train = gather(source.train, LIMIT)
    held_out = gather(source.held_out, LIMIT)[0]
    few = "" if len(held_out) > 1 else "there is only one held-out image"
    if lacks := no_classifier(source, train[1]) or few:
        raise UserError(
            f"samples cannot be judged by these data: {lacks}; expected labelled images of two classes "
            "or more, two of them or more held out"
        )
    judge = classifier.fit(*train)
    return Judge(source, judge, judge.features(held_out))
