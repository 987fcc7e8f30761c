"""Judge clips of a moving digit: does it keep its identity, and does it move as the real ones do?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8

from dit.evaluation import Real, check_samples, classifier, frechet, gather
from dit.evaluation.motion import motion, recentred
from dit.types import UserError

TRAIN = 3000  # real clips that the classifier learns from, one frame of each
HELD_OUT = 1000  # real clips that the samples are compared with


def evaluate_clips(
    samples: UInt8[np.ndarray, "n f h w c"], labels: Int[np.ndarray, "n"], source: Real
) -> dict[str, float]:
    """Compare ``samples`` with the real clips of ``source``; each figure also for real held-out clips.

    The classifier sees the object cut out around its centroid: it judges what it is and not where.
    ``identity``: the share of clips whose first and last frame are given the same class;
    ``accuracy_first``, ``accuracy_last``: the share given the label asked for; ``kept``: the share where
    all three agree. ``displacement``, ``speed``, ``wobble``: of ``motion``. The same names ending in
    ``_real`` are measured on held-out clips; ``displacement_ratio`` and ``speed_ratio`` compare the two.
    ``frechet``, ``frechet_matched``, ``frechet_floor``: of one frame a clip, cut out, as for images.
    Raises UserError for samples of another shape than the data's, or data without classes.
    """
    if source.shape[0] < 2 or source.shape[3] != 1 or source.num_classes is None:
        raise UserError(
            f"got a source of shape {source.shape} with {source.num_classes} classes; expected "
            "labelled clips of 2 frames or more with 1 channel"
        )
    check_samples(samples, labels, source.shape)
    train, train_labels = gather(source.train, TRAIN)
    real, real_labels = gather(source.held_out, HELD_OUT)
    frames = source.shape[0]
    judge = classifier.fit(_cut(train, np.arange(len(train)) % frames), train_labels)
    ours, theirs = _figures(judge, samples, labels), _figures(judge, real, real_labels)
    features = [judge.features(_cut(x, np.arange(len(x)) % frames)) for x in (samples, real)]
    return {
        "samples": float(len(samples)),
        "real": float(len(real)),
        "train": float(len(train)),
        **ours,
        **{f"{name}_real": value for name, value in theirs.items()},
        **{f"{k}_ratio": ours[k] / max(theirs[k], 1e-9) for k in ("displacement", "speed")},
        **frechet.figures(*features),
    }


def _cut(clips: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Frame ``frame[i]`` of clip ``i``, cut out around its centroid."""
    return recentred(clips[np.arange(len(clips)), frame, :, :, 0])


def _figures(
    judge: classifier.Classifier, clips: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    first, last = (judge.predict(recentred(clips[:, k, :, :, 0])) for k in (0, -1))
    return {
        "identity": float(np.mean(first == last)),
        "accuracy_first": float(np.mean(first == labels)),
        "accuracy_last": float(np.mean(last == labels)),
        "kept": float(np.mean((first == last) & (first == labels))),
        **motion(clips[..., 0]),
    }
