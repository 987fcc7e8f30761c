"""The noise: ``target = eps`` (Ho et al. 2020). Undefined where alpha is 0."""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.process import Prediction


def build() -> Prediction:
    return Prediction("eps", lambda path, t: (jnp.zeros_like(t), jnp.ones_like(t)))
