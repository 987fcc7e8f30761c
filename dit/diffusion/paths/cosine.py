"""The cosine path, ``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)`` (Salimans & Ho 2022, sec. 4).

Its log-SNR is ``-2 log tan(pi t / 2)``, from +inf to -inf: variance preserving, with zero terminal SNR.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from dit.diffusion.path import Path


def build(*, time_scale: float = 1000.0, t_min: float = 0.0, t_max: float = 1.0) -> Path:
    """``time_scale``: the network is told ``time_scale * t``."""
    return Path(
        alpha=lambda t: jnp.sin(math.pi / 2 * (1 - t)),  # exactly zero at t = 1, as cos is not
        sigma=lambda t: jnp.sin(math.pi / 2 * t),
        t_min=t_min,
        t_max=t_max,
        c_noise=lambda t: time_scale * t,
    )
