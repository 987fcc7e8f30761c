"""CFG++: interpolate the data estimate, but renoise with the unconditional noise (Chung et al.
2024).

Its DDIM step from t to u is ``x_u = alpha_u (D_u + lambda (D_c - D_u)) + sigma_u eps_u``. Since
``eps_c - eps_u = -(alpha_t / sigma_t)(D_c - D_u)``, DDIM with classifier-free guidance of scale w
gives ``alpha_u D_u + sigma_u eps_u + w (alpha_u - alpha_t sigma_u / sigma_t)(D_c - D_u)``: the
same step for ``w = lambda alpha_u / (alpha_u - alpha_t sigma_u / sigma_t) = lambda / (1 -
exp(-h))``, which is lambda for the step to data. So CFG++ is guidance whose scale depends on the
step, and in that form it works with every solver.
"""

from __future__ import annotations

import jax.numpy as jnp

from dit.diffusion.process import Denoiser
from dit.sampling.guidance import Guidance, extrapolate
from dit.sampling.solver import moving, transition
from dit.types import Fraction, match_time


def build(*, scale: Fraction) -> Guidance:
    """``scale`` is lambda, in [0, 1]; 0.6 is about as strong as a scale of 7.5 in plain guidance.
    A time between nodes of the grid belongs to the step that crosses it.
    """

    def guide(pair, path, grid):
        def full(x, t):
            s = match_time(t, x)
            nodes = grid.reshape(grid.shape + (1,) * (x.ndim + 1 - grid.ndim))
            step = jnp.sum(nodes[:-1] >= s[None], axis=0, keepdims=True) - 1
            step = jnp.clip(step, 0, len(grid) - 2)
            start, end = (jnp.take_along_axis(nodes, i, axis=0)[0] for i in (step, step + 1))
            w = scale / (1 - transition(path, *moving(path, start, end)).decay)
            (x_0, v), (x_0_u, _) = pair.both(x, t)
            return extrapolate(x_0, x_0_u, w), v

        return Denoiser(full)

    return Guidance(guide)
