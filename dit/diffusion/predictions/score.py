"""The score of the perturbation kernel: ``target = -eps / sigma`` (Song et al. 2021).

Infinite at ``sigma = 0``, and silent about the data where alpha is 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.process import Prediction


def build() -> Prediction:
    return Prediction("score", lambda path, t: (jnp.zeros_like(t), -1 / path.sigma(t)))
