"""Judge images that were asked for by label, against the real images of a source."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8

from dit.evaluation import Real, check_samples, classifier, frechet, gather, nearest
from dit.types import UserError

LIMIT = 10_000  # real training images that are read


def evaluate_images(
    samples: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, "n"], source: Real
) -> dict[str, float]:
    """Compare ``samples`` with the real images of ``source``.

    ``accuracy``: the share classified as the label asked for; ``accuracy_real``: of held-out images.
    ``frechet``, ``frechet_matched``, ``frechet_floor``: see ``frechet.figures``, in the classifier's
    features, against the held-out images; ``frechet_train``: the training images against them.
    The rest are the figures of ``nearest.compare``, and the counts. Without classes, only those.
    Raises UserError for samples of another shape than the data's, or labels that do not exist.
    """
    if source.shape[0] != 1:
        raise UserError(f"got a source of clips {source.shape}; use evaluate_clips")
    check_samples(samples, labels, source.shape[1:])
    train, train_labels = gather(source.train, LIMIT)
    real, real_labels = gather(source.held_out, LIMIT)
    result = {"samples": float(len(samples)), "real": float(len(real)), "train": float(len(train))}
    if source.num_classes is not None:
        if labels.min() < 0 or labels.max() >= source.num_classes:
            raise UserError(
                f"got labels up to {labels.max()}; expected 0 to {source.num_classes - 1}"
            )
        judge = classifier.fit(train, train_labels)
        features = judge.features(real)
        result |= {
            "accuracy": judge.accuracy(samples, labels),
            "accuracy_real": judge.accuracy(real, real_labels),
            **frechet.figures(judge.features(samples), features),
            "frechet_train": frechet.between(judge.features(train), features),
        }
    return result | nearest.compare(samples, real, train)
