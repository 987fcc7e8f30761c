"""PNDM: multistep on the noise estimate, one evaluation a step (Liu et al. 2022).

A step is DDIM's from t to u, eq. 9, with ``e'`` in the place of the noise estimate ``e_0``: the sum of
Adams and Bashforth's weights, (55, -59, 37, -9) / 24, times that estimate and the three before it, eq.
12. With ``d = e' - e_0`` it is ``x_u = alpha_u D_0 + sigma_u e_0 + (sigma_u - alpha_u sigma_t / alpha_t)
d``. The weights are those of equal steps in t: on the path's own timesteps, as ``uniform`` and ``ddpm``
have them. Of order 2, as log-SNR does not grow evenly (property 4 of the paper); 4 where sigma / alpha
does.

Before there are three past estimates the order is lower. The first step is then taken twice, the second
time with the mean of the estimates at both of its ends (PLMS, Stable Diffusion's sampler): ``steps + 1``
evaluations. With ``runge_kutta`` the first three steps are of Runge and Kutta's method with four
estimates, eq. 13, the paper's F-PNDM: ``steps + 9``. The last step lands on ``x0_hat`` and needs no
more than one. Where ``sigma / alpha`` falls to less than a twentieth (in the first steps, a fifth) d
would only overshoot, as in runs of two or three steps, and the step is DDIM's; so is one from alpha = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dit.sampling.denoisers import evaluate_if
from dit.sampling.solver import Solver, at, land, transition

PAST = 3
LONGEST = 5.0, 20.0  # steps, in the first ones and in others, as factors of sigma / alpha
WEIGHTS = np.array(  # of the past estimates, the latest first, where there are 0, 1, 2 or 3 of them
    [[0, 0, 0], [-1 / 2, 0, 0], [-16 / 12, 5 / 12, 0], [-59 / 24, 37 / 24, -9 / 24]]
)


class State(NamedTuple):
    e: Float[Array, "past b ..."]  # past estimates of the noise, the latest first
    count: Int[Array, "..."]  # how many steps were taken, 3 at most
    calls: Int[Array, ""]


def build(*, runge_kutta: bool = False) -> Solver:
    """``runge_kutta``: how a run begins, by three steps of four evaluations each."""
    careful, more = (PAST, 3) if runge_kutta else (1, 1)  # steps of so many evaluations more

    def init(path, x, grid, start):
        each = jnp.zeros(grid.shape[1:], jnp.int32)
        return State(jnp.zeros((PAST, *x.shape), x.dtype), each, jnp.zeros((), jnp.int32))

    def step(denoise, path, x, t, u, state, keys):
        alpha, sigma = path.alpha(t), path.sigma(t)
        x_0 = denoise(x, at(t, x))
        e = (x - alpha * x_0) / sigma
        first = (state.count < careful) & (u > 0)

        def move(d, s):
            _, _, alpha_s, sigma_s, decay = transition(path, t, s)
            shift = sigma_s - alpha_s * sigma / jnp.where(alpha > 0, alpha, 1)
            short = decay > 1 / jnp.where(first, *LONGEST)
            return alpha_s * x_0 + sigma_s * e + jnp.where(short, shift, 0) * d

        def gone(y, s):
            """How far the estimate at ``s`` is from that at ``t``, where these are first steps."""
            y_0 = evaluate_if(jnp.any(first), denoise, y, at(s, x), x_0)
            found = (y - path.alpha(s) * y_0) / jnp.where(s > 0, path.sigma(s), 1)
            return jnp.where(first, found - e, 0.0)

        weights = jnp.asarray(WEIGHTS.T, x.dtype)[:, state.count]
        d = sum(w * (past - e) for w, past in zip(weights, state.e, strict=True))
        none = jnp.zeros_like(x)
        if runge_kutta:
            middle = 0.5 * (t + u)
            second = gone(move(none, middle), middle)
            third = gone(move(second, middle), middle)
            begun = (2 * second + 2 * third + gone(move(third, u), u)) / 6
        else:
            begun = 0.5 * gone(move(none, u), u)
        after = State(
            jnp.concatenate([e[None], state.e[:-1]]),
            jnp.minimum(state.count + 1, PAST),
            state.calls + 1 + more * jnp.any(first),
        )
        return land(u, x_0, move(jnp.where(first, begun, d), u)), after

    def times(path, grid, start):
        starts, ends = grid[start:-1], grid[start + 1 : -1][:careful]
        middles = [0.5 * (starts[: len(ends)] + ends)] * 2 if runge_kutta else []
        return jnp.concatenate([starts, *middles, ends])

    return Solver(
        step,
        order=2,
        init=init,
        evaluations=lambda n: n + more * min(careful, n - 1),
        times=times,
        count=lambda state: state.calls,
    )
