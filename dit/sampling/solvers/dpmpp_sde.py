"""SDE-DPM-Solver++ (Lu et al. 2022b, sec. 4): the reverse SDE, exact but for the estimate.

``x_u = (sigma_u / sigma_t) exp(-h) x + alpha_u (1 - exp(-2h)) D + sigma_u sqrt(1 - exp(-2h)) z``.
Order 1 takes ``D = D_0``, which is ancestral sampling; order 2 (2M SDE) extrapolates in log-SNR:
``D = D_0 + c (D_0 - D_1) h / h_previous``, with c = 1/2 (``midpoint``), or the integral's own ``1
/ (1 - exp(-2h)) - 1 / (2h)`` (``heun``).
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from dit import rng
from dit.sampling.multistep import nothing, positions, remember
from dit.sampling.solver import Solver, at, half_logsnr, land, transition
from dit.types import UserError


def build(*, order: Literal[1, 2] = 2, variant: Literal["midpoint", "heun"] = "midpoint") -> Solver:
    """Raises UserError for a ``variant`` at order 1, where there is but one."""
    if order == 1 and variant != "midpoint":
        raise UserError(
            f"got variant={variant!r} with order=1, which has no variants; leave it out"
        )

    def step(denoise, path, x, t, u, past, keys):
        x_0 = denoise(x, at(t, x))
        now, then = half_logsnr(path, t), half_logsnr(path, u)
        _, sigma_t, alpha_u, sigma_u, decay = transition(path, t, u)
        share = 1 - jnp.square(decay)
        estimate = x_0
        if order == 2:
            (r,), (usable,) = positions(past, now, then - now)
            h = jnp.where(usable, then - now, 1.0)
            c = 0.5 if variant == "midpoint" else -1 / jnp.expm1(-2 * h) - 0.5 / h
            estimate = x_0 + jnp.where(usable, c / r, 0.0) * (past.x_0[0] - x_0)
        mean = sigma_u / sigma_t * decay * x + alpha_u * share * estimate
        fresh = sigma_u * jnp.sqrt(share) * rng.normal(keys, x.shape[1:], x.dtype)
        return land(u, x_0, mean + fresh), remember(past, x_0, now)

    return Solver(step, order=None, init=lambda path, x, grid, start: nothing(x, 1, grid))
