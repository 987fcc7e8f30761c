"""All figures for samples of a source of images or clips: what ``dit.evaluate`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dit.evaluation import Real, adherence
from dit.evaluation.clips import evaluation_of_clips
from dit.evaluation.images import evaluation_of_images
from dit.evaluation.parts import Evaluation


def evaluation_of(source: Real, count: int, captions: Sequence[str] = ()) -> Evaluation:
    """The evaluation of ``count`` samples. It reads the real data now, and samples when it is called.

    ``captions``: of the first ``count`` held-out examples, where samples are judged by them. Its
    ``figures`` are those that the data allow, and ``left_out`` says why the others are missing. Raises
    UserError if there are no real examples, or if they are not pixels.
    """
    if source.shape[0] > 1:
        return evaluation_of_clips(source, count)
    evaluation = evaluation_of_images(source, count)
    parts = (*evaluation.parts, *adherence.parts(source, captions))
    return dataclasses.replace(evaluation, parts=parts)
