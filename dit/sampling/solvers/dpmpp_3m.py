"""DPM-Solver++(3M): multistep through the last three estimates (Lu et al. 2022b), one a step.

The estimate is continued by the parabola through D_0, D_1 and D_2, at s = 0, ``r_1 h`` and ``r_2
h`` (both negative): with Newton's differences ``S = (D_1 - D_0) / r_1`` and ``B = (S - (D_1 - D_2)
/ (r_1 - r_2)) / -r_2`` it is ``D_0 + S s / h + B (s / h) (s / h - r_1)``. Its exact integral, of
order 3, is ``x_u = (sigma_u / sigma_t) x + alpha_u [c_0 D_0 + c_1 (S - r_1 B) + c_2 B]``
(``multistep.moments``). The authors' code, and those that follow it, give the last term half this
weight. That is the solver known by this name and the default: of order 2, but steadier and more
accurate in few steps.

Steps with fewer usable estimates (the first two, the two after a node with alpha = 0, the last) are
of the highest order that these allow.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.sampling.multistep import moments, nothing, positions, remember
from dit.sampling.solver import Solver, at, half_logsnr, land, transition


def build(*, third_order: bool = False) -> Solver:
    """``third_order``: the full weight of the last term; better from about 100 steps on."""
    weight = 1.0 if third_order else 0.5

    def step(denoise, path, x, t, u, past, keys):
        x_0 = denoise(x, at(t, x))
        now, then = half_logsnr(path, t), half_logsnr(path, u)
        (r_1, r_2), (second, third) = positions(past, now, then - now)
        third &= second
        S = jnp.where(second, 1 / r_1, 0.0) * (past.x_0[0] - x_0)
        older = (past.x_0[0] - past.x_0[1]) / jnp.where(third, r_1 - r_2, 1.0)
        B = jnp.where(third, -1 / r_2, 0.0) * (S - older)
        _, c_1, c_2 = moments(jnp.where(second, then - now, 1.0), 3)
        _, sigma_t, alpha_u, sigma_u, decay = transition(path, t, u)
        integral = (1 - decay) * x_0 + c_1 * (S - r_1 * B) + weight * c_2 * B
        return land(u, x_0, sigma_u / sigma_t * x + alpha_u * integral), remember(past, x_0, now)

    return Solver(
        step, order=3 if third_order else 2, init=lambda path, x, grid, start: nothing(x, 2, grid)
    )
