"""The data itself: ``target = x_0``."""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.process import Prediction


def build() -> Prediction:
    return Prediction("x0", lambda path, t: (jnp.ones_like(t), jnp.zeros_like(t)))
