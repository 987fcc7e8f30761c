"""The straight path of rectified flow: ``x_t = (1 - t) x_0 + t eps`` (Liu et al. 2022; SiT 2024)."""

from __future__ import annotations

from dit.diffusion.path import Path
from dit.types import Fraction, Positive, Share


def build(*, time_scale: Positive = 1.0, t_min: Fraction = 0.0, t_max: Share = 1.0) -> Path:
    """``time_scale``: the network is told ``time_scale * t`` (SiT 1; SD3 and Flux 1000)."""
    return Path(
        alpha=lambda t: 1 - t,
        sigma=lambda t: t,
        t_min=t_min,
        t_max=t_max,
        c_noise=lambda t: time_scale * t,
    )
