"""Judge images that were requested by label against the real images of a source."""

from __future__ import annotations

import numpy as np

from dit.evaluation import Real, classifier, frechet, gather, nearest, reduced
from dit.evaluation.parts import Evaluation, Figures, Part, counts, no_classifier, too_few

LIMIT = 10_000  # real images read from each split


def evaluation_of_images(source: Real, count: int) -> Evaluation:
    """The evaluation of ``count`` samples against the real images of ``source``.

    ``accuracy``: the share classified as the requested label; ``accuracy_real``: the same for held-out
    images. ``frechet.FIGURES``: distances to the held-out images in the classifier's features;
    ``frechet_train``: the distance of the training images to them. The rest are the figures of
    ``nearest.part``, and the counts. Images are judged at the size of ``reduced``.
    """
    train, train_labels = gather(source.train, LIMIT)
    real, real_labels = gather(source.held_out, LIMIT)
    lacks = no_classifier(source, train_labels)
    few = lacks or too_few(count, len(real))
    judge = None if lacks else classifier.fit(train, train_labels)

    def judged(samples: np.ndarray, labels: np.ndarray | None) -> Figures:
        assert judge is not None  # this part is left out without a classifier or labels
        assert labels is not None
        x = reduced(samples)
        found = {
            "accuracy": judge.accuracy(x, labels),
            "accuracy_real": judge.accuracy(real, real_labels),
        }
        if not few:
            features = judge.features(real)
            found |= frechet.figures(judge.features(x), features)
            found["frechet_train"] = frechet.between(judge.features(train), features)
        return found

    accuracies = dict.fromkeys(("accuracy", "accuracy_real"), lacks)
    distances = dict.fromkeys((*frechet.FIGURES, "frechet_train"), few)
    parts = (
        counts(train, real),
        Part(accuracies | distances, judged),
        nearest.part(train, real, count, reduced),
    )
    return Evaluation(source, count, parts)
