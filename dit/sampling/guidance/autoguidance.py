"""Autoguidance: away from a weaker version of the model itself (Karras et al. 2024a, eq. 3).

``D = D_weak + w (D - D_weak)``. Call it with ``denoisers.pair(denoiser, weak)``, where ``weak`` is
a smaller or less trained model with the same condition. Scale 1 is no guidance.
"""

from __future__ import annotations

from dit.sampling.guidance import Guidance
from dit.sampling.guidance.cfg import build as classifier_free
from dit.types import Scale


def build(*, scale: Scale) -> Guidance:
    return classifier_free(scale=scale)
