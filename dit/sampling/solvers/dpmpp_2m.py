"""DPM-Solver++(2M): second-order multistep (Lu et al. 2022b, algorithm 2), one evaluation a step.

``x_u = (sigma_u / sigma_t) x + alpha_u (1 - exp(-h)) D`` with ``D`` the estimate extrapolated
linearly in log-SNR to the middle of the step: ``D = D_0 + (D_0 - D_1) h / (2 h_previous)``. The
first step, the last (to data) and the one after a node with alpha = 0 are of first order.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.sampling.multistep import nothing, positions, remember
from dit.sampling.solver import Solver, at, half_logsnr, land, transition


def build() -> Solver:
    def step(denoise, path, x, t, u, past, keys):
        x_0 = denoise(x, at(t, x))
        now, then = half_logsnr(path, t), half_logsnr(path, u)
        (r,), (usable,) = positions(past, now, then - now)
        extrapolated = x_0 + jnp.where(usable, 0.5 / r, 0.0) * (past.x_0[0] - x_0)
        _, sigma_t, alpha_u, sigma_u, decay = transition(path, t, u)
        x_u = sigma_u / sigma_t * x + alpha_u * (1 - decay) * extrapolated
        return land(u, x_0, x_u), remember(past, x_0, now)

    return Solver(step, order=2, init=lambda path, x, grid, start: nothing(x, 1, grid))
