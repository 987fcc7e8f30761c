"""All figures for samples of a source of images or clips: what ``dit.evaluate`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dit.evaluation import Real, adherence, likeness, world
from dit.evaluation.clips import evaluation_of_clips
from dit.evaluation.features import networks
from dit.evaluation.images import evaluation_of_images
from dit.evaluation.parts import Evaluation
from dit.types import UserError


def evaluation_of(
    source: Real,
    count: int,
    captions: Sequence[str] = (),
    split: str = "held_out",
    features: Sequence[str] = (),
) -> Evaluation:
    """The evaluation of ``count`` samples. It reads the real data now, and samples when it is called.

    ``captions``: of the first ``count`` examples of the ``split``, where samples are judged by them.
    ``features``: networks in whose features images are compared (``evaluation.features``). Its
    ``figures`` are those that the data allow, and ``left_out`` says why the others are missing. Raises
    UserError if there are no real examples, if they are not pixels, and for a network that is not there.
    """
    if source.shape[0] > 1:
        if features:
            raise UserError(
                f"got features={list(features)} for clips; they are of images, one frame"
            )
        evaluation = evaluation_of_clips(source, count)
        moving = world.parts(source, captions, getattr(source, split))
        return dataclasses.replace(evaluation, parts=(*evaluation.parts, *moving))
    judges = networks(features)
    evaluation, asked = evaluation_of_images(source, count), getattr(source, split)
    parts = (*evaluation.parts, *adherence.parts(source, captions, asked))
    parts += tuple(likeness.part(source, count, one, asked, captions) for one in judges)
    return dataclasses.replace(evaluation, parts=parts)
