"""Judge clips of a moving digit: does it keep its identity, and does it move like the real ones?"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dit.evaluation import Real, classifier, frechet, gather, nearest, reduced
from dit.evaluation.classifier import Classifier
from dit.evaluation.motion import centroids, motion, recentred
from dit.evaluation.parts import Evaluation, Figures, Part, counts, no_classifier, too_few
from dit.types import UserError

TRAIN = 3000  # real clips to fit the classifier to, one frame of each
HELD_OUT = 1000  # real clips to compare samples with
IDENTITY = ("identity", "accuracy_first", "accuracy_last", "kept")
MOTION = ("displacement", "speed", "wobble")
Seen = Float[np.ndarray, "_ f d"]  # the cut-out object, and its place, in every frame


def evaluation_of_clips(source: Real, count: int) -> Evaluation:
    """The evaluation of ``count`` samples against the real clips of ``source``.

    The classifier sees the object cropped around its centroid, so it judges what the object is and not
    where. ``identity``: the share of clips whose first and last frames get the same class.
    ``accuracy_first``, ``accuracy_last``: the share that gets the requested label. ``kept``: the share
    where all three agree. ``displacement``, ``speed``, ``wobble``: see ``motion``. The same names ending
    in ``_real`` are measured on held-out clips; ``displacement_ratio`` and ``speed_ratio`` compare the
    two. ``frechet.FIGURES``: from one cropped frame of each clip. The rest are the figures of
    ``nearest.part`` for whole clips at the size of ``reduced``, and the counts. Clips with several
    channels have only these last.
    """
    train, train_labels = gather(source.train, TRAIN)
    real, real_labels = gather(source.held_out, HELD_OUT)
    lacks = no_classifier(source, train_labels)
    channels = source.shape[3]
    if channels == 1:
        seen, seen_real = (
            gather(split, limit, _seen)[0]
            for split, limit in ((source.train, TRAIN), (source.held_out, HELD_OUT))
        )
        judged = (
            _motion(seen_real),
            _identity(lacks, (seen, train_labels), (seen_real, real_labels), count),
        )
    else:
        lacks = f"clips of 1 channel are needed, of one bright object; these have {channels}"
        names = (*_and_real(MOTION), "displacement_ratio", "speed_ratio", *_and_real(IDENTITY))
        judged = (Part(dict.fromkeys((*names, *frechet.FIGURES), lacks), lambda x, labels: {}),)
    parts = (counts(train, real), *judged, nearest.part(train, real, count, reduced))
    return Evaluation(source, count, parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Judges clips of any length frame by frame; ``of`` fits one to clips of one bright object."""

    classifier: Classifier

    @classmethod
    def of(cls, source: Real) -> Frames:
        """Fitted to one frame of each training clip; UserError for data that it cannot judge."""
        train, labels = gather(source.train, TRAIN)
        if lacks := no_classifier(source, labels):
            raise UserError(f"clips cannot be judged frame by frame: {lacks}")
        if source.shape[3] != 1:
            raise UserError(f"clips of 1 channel are needed; these have {source.shape[3]}")
        return cls(classifier.fit(_one_each(np.stack([_seen(x) for x in train])), labels))

    def __call__(
        self, clips: UInt8[np.ndarray, "n f h w 1"], labels: Int[np.ndarray, " n"]
    ) -> tuple[Bool[np.ndarray, "n f"], Float[np.ndarray, "n f-1"]]:
        """Whether each frame shows the class asked for; how far the object moves to the next, pixels."""
        seen = np.stack([_seen(x) for x in clips])
        right = np.stack(
            [self.classifier.predict(seen[:, k, :-2]) == labels for k in range(seen.shape[1])], 1
        )
        return right, np.linalg.norm(np.diff(seen[..., -2:], axis=1), axis=-1)


def _seen(clip: UInt8[np.ndarray, "f h w 1"]) -> Float[np.ndarray, "f d"]:
    """The crop around each frame's centroid, and the centroid: all that the judges look at."""
    frames = clip[..., 0]
    cut = recentred(frames).reshape(len(frames), -1)
    return np.concatenate([cut, centroids(frames[None])[0]], axis=1)


def _motion(real: Seen) -> Part:
    """How the objects move."""
    theirs = motion(real[..., -2:])
    still = "the held-out clips do not move"
    lacks = dict.fromkeys(_and_real(MOTION), "")
    lacks |= {f"{k}_ratio": "" if theirs[k] else still for k in ("displacement", "speed")}
    if real.shape[1] < 3:
        lacks |= dict.fromkeys(("wobble", "wobble_real"), "clips of 3 frames or more are needed")

    def measure(samples: np.ndarray, labels: np.ndarray | None) -> Figures:
        ours = motion(np.stack([_seen(x)[:, -2:] for x in samples]))
        return {
            **ours,
            **{f"{k}_real": v for k, v in theirs.items()},
            **{f"{k}_ratio": ours[k] / (theirs[k] or np.nan) for k in ("displacement", "speed")},
        }

    return Part(lacks, measure)


def _identity(
    lacks: str,
    train: tuple[Seen, Int[np.ndarray, " _"] | None],
    real: tuple[Seen, Int[np.ndarray, " _"] | None],
    count: int,
) -> Part:
    """What the objects are."""
    few = lacks or too_few(count, len(real[0]))
    judge = None if lacks else classifier.fit(_one_each(train[0]), train[1])

    def shares(seen: Seen, labels: np.ndarray) -> Figures:
        first, last = (judge.predict(seen[:, k, :-2]) for k in (0, -1))
        return {
            "identity": float(np.mean(first == last)),
            "accuracy_first": float(np.mean(first == labels)),
            "accuracy_last": float(np.mean(last == labels)),
            "kept": float(np.mean((first == last) & (first == labels))),
        }

    def measure(samples: np.ndarray, labels: np.ndarray | None) -> Figures:
        seen = np.stack([_seen(x) for x in samples])
        found = shares(seen, labels)
        found |= {f"{name}_real": value for name, value in shares(*real).items()}
        if not few:
            ours, theirs = (judge.features(_one_each(x)) for x in (seen, real[0]))
            found |= frechet.figures(ours, theirs)
        return found

    accuracies = dict.fromkeys(_and_real(IDENTITY), lacks)
    return Part(accuracies | dict.fromkeys(frechet.FIGURES, few), measure)


def _one_each(seen: Seen) -> Float[np.ndarray, "_ p"]:
    """One cropped frame of each clip: the first of the first, the second of the second, and so on."""
    n = np.arange(len(seen))
    return seen[n, n % seen.shape[1], :-2]


def _and_real(names: tuple[str, ...]) -> tuple[str, ...]:
    return (*names, *(f"{name}_real" for name in names))
