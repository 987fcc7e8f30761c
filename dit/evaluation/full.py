"""All figures for samples of a source of images or clips: what ``dit.evaluate`` prints."""

from __future__ import annotations

from dit.evaluation import Real
from dit.evaluation.clips import evaluation_of_clips
from dit.evaluation.images import evaluation_of_images
from dit.evaluation.parts import Evaluation


def evaluation_of(source: Real, count: int) -> Evaluation:
    """The evaluation of ``count`` samples. It reads the real data now, and samples when it is called.

    Its ``figures`` are those that the data allow, and ``left_out`` says why the others are missing.
    Raises UserError if there are no real examples, or if they are not pixels.
    """
    return (evaluation_of_images if source.shape[0] == 1 else evaluation_of_clips)(source, count)
