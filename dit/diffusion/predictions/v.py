"""``target = v = alpha eps - sigma x_0`` (Salimans & Ho 2022, appendix D)."""

from __future__ import annotations

from dit.diffusion.process import Prediction


def build() -> Prediction:
    return Prediction("v", lambda path, t: (-path.sigma(t), path.alpha(t)))
