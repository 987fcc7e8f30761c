"""The cosine path, ``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)`` (Salimans & Ho 2022, sec. 4).

Its log-SNR is ``-2 log tan(pi t / 2)``, from +inf to -inf: variance preserving, with zero terminal SNR.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from dit.diffusion.path import Path
from dit.types import Fraction, Positive, Share


def build(*, time_scale: Positive = 1000.0, t_min: Fraction = 0.0, t_max: Share = 1.0) -> Path:
    """``time_scale``: the network is told ``time_scale * t``."""
    return Path(
        alpha=lambda t: _cos(t, 1 - t),
        sigma=lambda t: _cos(1 - t, t),
        t_min=t_min,
        t_max=t_max,
        c_noise=lambda t: time_scale * t,
    )


def _cos(t, rest):
    """``cos(pi t / 2)``, by ``sin(pi rest / 2)`` in the second half: exactly zero at ``t = 1``.

    So neither it nor its derivative is a small difference of large numbers anywhere.
    """
    quarter = math.pi / 2
    return jnp.where(t < 0.5, jnp.cos(quarter * t), jnp.sin(quarter * rest))
