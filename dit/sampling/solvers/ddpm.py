"""DDPM's ancestral sampling (Ho et al. 2020, algorithm 2), on any path and any grid.

``x_u ~ N(mean, var)``, the posterior of x_u given x_t and ``x_0 = x0_hat``: with ``exp(-h)`` the
decay of the step, ``mean = alpha_u (1 - exp(-2h)) x0_hat + (sigma_u / sigma_t) exp(-h) x_t``. The
variance is ``small``, the posterior's own ``sigma_u^2 (1 - exp(-2h))`` (beta tilde); ``large``,
the forward step's ``sigma_t^2 (1 - exp(-2h))`` (beta); or ``learned``, log-interpolated between
the two by the network's v in [-1, 1]: ``log var = (v + 1) / 2 log large + (1 - v) / 2 log small``
(Nichol & Dhariwal 2021, eq. 15). The last step adds no noise and lands on ``x0_hat``; the clipping
of its log-variance in the original code is therefore never seen in a sample.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from dit import rng
from dit.sampling.solver import Solver, at, land, transition
from dit.types import Positive, UserError


def build(
    *, variance: Literal["small", "large", "learned"] = "small", clip: Positive | None = None
) -> Solver:
    """``clip``: bound ``x0_hat`` to ``[-clip, clip]`` first, for data in that range (not latents).

    Raises UserError for ``learned`` with a model that has none.
    """

    def step(denoise, path, x, t, u, state, keys):
        x_0, v = denoise.full(x, at(t, x))
        if clip is not None:
            x_0 = jnp.clip(x_0, -clip, clip)
        _, sigma_t, alpha_u, sigma_u, decay = transition(path, t, u)
        share = 1 - jnp.square(decay)
        mean = alpha_u * share * x_0 + sigma_u / sigma_t * decay * x
        small, large = jnp.square(sigma_u) * share, jnp.square(sigma_t) * share
        if variance == "learned":
            if v is None:
                raise UserError(
                    "solver 'ddpm' with variance='learned' got a model without variance channels; "
                    "use variance='small' or 'large', or train one with a learned variance"
                )
            tiny = jnp.finfo(x.dtype).tiny  # at u = 0, where no noise is added
            log_small, log_large = jnp.log(jnp.maximum(small, tiny)), jnp.log(large)
            std = jnp.exp(0.5 * (0.5 * (v + 1) * log_large + 0.5 * (1 - v) * log_small))
        else:
            std = jnp.sqrt(small if variance == "small" else large)
        return land(u, x_0, mean + std * rng.normal(keys, x.shape[1:], x.dtype)), state

    return Solver(step, order=None)
