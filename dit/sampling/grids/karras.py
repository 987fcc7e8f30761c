"""EDM's grid (Karras et al. 2022, eq. 5), in the noise level ``tau = sigma / alpha`` on any path.

``tau_i = (tau_max^(1/rho) + i / (steps - 1) (tau_min^(1/rho) - tau_max^(1/rho)))^rho``, then 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.path import time_of_logsnr
from dit.sampling.grids import GridFn, check_steps, closed, logsnr_ends
from dit.types import UserError


def build(*, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> GridFn:
    """tau runs between the path's own levels at t_max and t_min; ``sigma_max`` and ``sigma_min``
    take their place where those are infinite or zero. Raises UserError for an empty range or rho <
    1."""
    if not (0 < sigma_min < sigma_max and rho >= 1):
        raise UserError(
            f"got rho={rho}, sigma_min={sigma_min}, sigma_max={sigma_max}; expected rho >= 1 and "
            "0 < sigma_min < sigma_max"
        )

    def grid(path, steps):
        check_steps(steps)
        noisy, clean = logsnr_ends(path, sigma_max, sigma_min)
        roots = jnp.linspace(jnp.exp(-0.5 * noisy / rho), jnp.exp(-0.5 * clean / rho), steps)
        return closed(path, time_of_logsnr(path, -2 * rho * jnp.log(roots)))

    return grid
