"""A small classifier of real images, used to judge samples.

Labels come from a support vector machine with a Gaussian kernel (99% on the held-out digits), features
from the last hidden layer of a two-layer perceptron. Both are fitted to the real training split and
depend on nothing else, as every random choice has a fixed seed.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from dit.types import UserError

HIDDEN = (128, 32)  # units of the perceptron; the last is the number of features


@dataclasses.dataclass(frozen=True)
class Classifier:
    """``predict`` and ``features`` of images ``(n, ...)`` of any one shape, in 0..255."""

    machine: Any
    perceptron: Any
    scale: float

    def predict(self, images: Shaped[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
        """The most likely class of each image."""
        return self.machine.predict(_flat(images))

    def accuracy(self, images: Shaped[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> float:
        """The share of ``images`` that are classified as ``labels``."""
        return float(np.mean(self.predict(images) == labels))

    def features(self, images: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
        """The last hidden layer, scaled to a mean variance of 1 over the training images."""
        return self.scale * _hidden(self.perceptron, _flat(images))


def fit(images: Shaped[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> Classifier:
    """Fit both machines to real images in 0..255; a few seconds for some thousand small images.

    Raises UserError for fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC
    from threadpoolctl import threadpool_limits

    if why := one_class(labels):
        raise UserError(f"got real images that no classifier can learn from: {why}")
    x = _flat(images)
    machine = SVC(C=10.0, gamma="scale").fit(x, labels)
    perceptron = MLPClassifier(HIDDEN, alpha=1e-2, max_iter=60, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):  # threads do not help with small matrices
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # the fixed number of passes is intended
        perceptron.fit(x, labels)
    variance = np.mean(np.var(_hidden(perceptron, x), axis=0))
    return Classifier(machine, perceptron, float(1 / np.sqrt(variance)))


def one_class(labels: Int[np.ndarray, " n"]) -> str:
    """Why no classifier can be fitted to images with these labels; empty if one can."""
    if len(np.unique(labels)) > 1:
        return ""
    return f"all {len(labels)} training examples are of one class, nothing to tell apart"


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0


def _hidden(perceptron: Any, x: np.ndarray) -> np.ndarray:
    for weight, bias in zip(perceptron.coefs_[:-1], perceptron.intercepts_[:-1], strict=True):
        x = np.maximum(0, x @ weight + bias)
    return x
