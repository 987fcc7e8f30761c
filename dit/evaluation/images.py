"""Judge images that were asked for by label, against the real images of a source."""

from __future__ import annotations

import numpy as np

from dit.evaluation import Real, classifier, frechet, gather, nearest, reduced
from dit.evaluation.parts import Evaluation, Figures, Part, counts, no_classifier, too_few

LIMIT = 10_000  # real images that are read of each split


def evaluation_of_images(source: Real, count: int) -> Evaluation:
    """The evaluation of ``count`` samples beside the real images of ``source``.

    ``accuracy``: the share classified as the label asked for; ``accuracy_real``: of held-out images.
    ``frechet.FIGURES``: in the classifier's features, against the held-out images; ``frechet_train``:
    the training images against them. The rest are the figures of ``nearest.part``, and the counts.
    Images are judged at the size of ``reduced``.
    """
    train, train_labels = gather(source.train, LIMIT)
    real, real_labels = gather(source.held_out, LIMIT)
    lacks = no_classifier(source, train_labels)
    few = lacks or too_few(count, len(real))
    judge = None if lacks else classifier.fit(train, train_labels)

    def judged(samples: np.ndarray, labels: np.ndarray | None) -> Figures:
        assert judge is not None  # without a judge, or labels, this part is left out
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
