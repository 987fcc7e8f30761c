"""EDM's grid (Karras et al. 2022, eq. 5), in the noise level ``tau = sigma / alpha`` on any path.

``tau_i = (tau_max^(1/rho) + i / (steps - 1) (tau_min^(1/rho) - tau_max^(1/rho)))^rho``, then 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.path import time_of_logsnr
from dit.sampling.grids import GridFn, check_steps, closed, logsnr_ends
from dit.types import Positive, Power, UserError


def build(*, rho: Power = 7.0, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0) -> GridFn:
    """tau runs between the path's own levels at t_max and t_min; ``sigma_max`` and ``sigma_min``
    take their place where those are infinite or zero. Raises UserError for an empty range."""
    if not sigma_min < sigma_max:
        raise UserError(
            f"got sigma_min={sigma_min}, sigma_max={sigma_max}; expected sigma_min < sigma_max"
        )

    def grid(path, steps):
        check_steps(steps)
        noisy, clean = logsnr_ends(path, sigma_max, sigma_min)
        roots = jnp.linspace(jnp.exp(-0.5 * noisy / rho), jnp.exp(-0.5 * clean / rho), steps)
        return closed(path, time_of_logsnr(path, -2 * rho * jnp.log(roots)))

    return grid
