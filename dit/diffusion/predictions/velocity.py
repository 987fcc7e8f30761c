"""The path's velocity: ``target = d x_t / dt = alpha' x_0 + sigma' eps`` (Lipman et al. 2022; SiT)."""

from __future__ import annotations

from dit.diffusion.path import derivatives
from dit.diffusion.process import Prediction


def build() -> Prediction:
    def coefficients(path, t):
        _, alpha_dot, _, sigma_dot = derivatives(path, t)
        return alpha_dot, sigma_dot

    return Prediction("velocity", coefficients)
