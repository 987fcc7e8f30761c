"""All figures for samples of a source of images or clips: what ``dit.evaluate`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dit.evaluation import Real, adherence, drift, likeness, world
from dit.evaluation.clips import evaluation_of_clips
from dit.evaluation.features import networks
from dit.evaluation.images import evaluation_of_images
from dit.evaluation.parts import Evaluation, Part
from dit.types import UserError


def evaluation_of(
    source: Real,
    count: int,
    captions: Sequence[str] = (),
    split: str = "held_out",
    features: Sequence[str] = (),
    rolled_out: tuple[int, Sequence[int]] | None = None,
) -> Evaluation:
    """The evaluation of ``count`` samples. It reads the real data now, and samples when it is called.

    ``captions``: of the first ``count`` examples of the ``split``, where samples are judged by them.
    ``features``: networks in whose features images are compared (``evaluation.features``).
    ``rolled_out``: of clips that are judged by how they drift too, and where they are longer than those
    that the model was trained on by that and by their captions alone: the frames of the longest of
    those, and the frames at which a block begins (``drift``). Its
    ``figures`` are those that the data allow, and ``left_out`` says why the others are missing. Raises
    UserError if there are no real examples, if they are not pixels, and for a network that is not there.
    """
    if source.shape[0] > 1:
        if features:
            raise UserError(
                f"got features={list(features)} for clips; they are of images, one frame"
            )
        asked = getattr(source, split)
        moving: tuple[Part, ...] = world.parts(source, captions, asked)
        if rolled_out is not None:
            moving = (*moving, drift.part(source, captions, asked, *rolled_out))
            if source.shape[0] > rolled_out[0]:
                return Evaluation(source, count, moving)
        evaluation = evaluation_of_clips(source, count)
        return dataclasses.replace(evaluation, parts=(*evaluation.parts, *moving))
    judges = networks(features)
    evaluation, asked = evaluation_of_images(source, count), getattr(source, split)
    parts = (*evaluation.parts, *adherence.parts(source, captions, asked))
    parts += tuple(likeness.part(source, count, one, asked, captions) for one in judges)
    return dataclasses.replace(evaluation, parts=parts)
