"""All that can be said of samples of a source, images or clips: what ``dit.evaluate`` prints."""

from __future__ import annotations

from dit.evaluation import Real
from dit.evaluation.clips import evaluation_of_clips
from dit.evaluation.images import evaluation_of_images
from dit.evaluation.parts import Evaluation


def evaluation_of(source: Real, count: int) -> Evaluation:
    """The evaluation of ``count`` samples: looks at the real data now, at samples when it is called.

    Its ``figures`` are what these data allow to measure, ``left_out`` the rest and why. Raises UserError
    where there are no real examples, or they are not pixels.
    """
    return (evaluation_of_images if source.shape[0] == 1 else evaluation_of_clips)(source, count)
