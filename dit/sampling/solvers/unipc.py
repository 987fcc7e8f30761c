"""UniPC: multistep predictor and corrector that share their evaluations (Zhao et al. 2023), one a
step.

Predictor, order p: the exact integral (``multistep``) of the polynomial through D_0 and p - 1 past
estimates. The estimate at the end of a step, which the next step needs anyway, then corrects that
step: the same integral with one more node, at ``r = 1``, which makes the whole of order p + 1. As
the moments are solved for exactly, the paper's B(h) matters only where it prescribes the weight
``B(h) / 2``: in a predictor of order 2 and in a corrector of order 1. There ``bh1`` is ``B = h``,
but at most 2, and ``bh2`` is ``B = 1 - exp(-h)``: as the exact weights lie below 1, a longer step
(of runs in few steps, and the one from alpha = 0, where h is infinite) would only overshoot.

Order builds up from 1 at the start and, where alpha = 0 at the first node, again from the second.
The last step lands on ``x0_hat``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dit.sampling.multistep import Past, moments, nothing, positions, quadrature, remember
from dit.sampling.solver import Node, Solver, at, half_logsnr, land, transition


class State(NamedTuple):
    past: Past  # one entry more than the predictor needs: the corrector starts a step earlier
    x: Float[Array, "b ..."]  # corrected samples at the node before
    t: Node  # time of that node
    order: Int[Array, "..."]  # of the predictor that started there, 0 before the first step
    left: Int[Array, ""]  # steps still to be taken


def build(
    *,
    order: Literal[2, 3] = 2,
    variant: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = False,
) -> Solver:
    """``lower_order_final``: let the order fall to 2 on the last step but one, as others do for
    short runs (the last is of order 1 in any case)."""

    def init(path, x, grid, start):
        zero = jnp.zeros((), jnp.int32)
        each = jnp.zeros(grid.shape[1:], jnp.int32)
        past = nothing(x, order, grid)
        return State(past, x, grid[start], each, zero + grid.shape[0] - 1 - start)

    def half_b(h, decay):
        return 0.5 * (jnp.where(h < 2, h, 2.0) if variant == "bh1" else 1 - decay)

    def advance(path, x, t, u, x_0, past, p, x_0_u):
        """From t to u with order p; ``x_0_u`` is the estimate at u for a corrector, else None."""
        h = half_logsnr(path, u) - half_logsnr(path, t)
        r, _ = positions(past, half_logsnr(path, t), h)
        _, sigma_t, alpha_u, sigma_u, decay = transition(path, t, u)
        c = moments(jnp.where(jnp.isfinite(h), h, 1.0), order + 1)
        table = []  # row p: weights of the past estimates, then of x_0_u
        for q in range(1, order + 1):
            nodes = [*r[: q - 1], *([] if x_0_u is None else [jnp.ones_like(h)])]
            w = quadrature(nodes, c[1 : len(nodes) + 1])
            if len(nodes) == 1 and (q, x_0_u is None) in ((2, True), (1, False)):
                w = [half_b(h, decay)]
            new = jnp.zeros_like(h) if x_0_u is None else w.pop()
            table.append(jnp.stack([*w, *[jnp.zeros_like(h)] * (order - q), new]))
        row = (jnp.clip(p, 1, order) - 1)[None, None]
        w = jnp.take_along_axis(jnp.stack(table), row, axis=0)[0]
        integral = (1 - decay) * x_0
        for k in range(order - 1):
            integral += w[k] / r[k] * (past.x_0[k] - x_0)
        if x_0_u is not None:
            integral += w[-1] * (x_0_u - x_0)
        return sigma_u / sigma_t * x + alpha_u * integral

    def step(denoise, path, x, t, u, state, keys):
        x_0 = denoise(x, at(t, x))
        now = half_logsnr(path, t)
        older = Past(state.past.x_0[1:], state.past.half_logsnr[1:])
        better = advance(path, state.x, state.t, t, state.past.x_0[0], older, state.order, x_0)
        x = jnp.where(state.order > 0, better, x)

        usable = jnp.isfinite(state.past.half_logsnr[: order - 1]) & jnp.isfinite(now)[None]
        p = 1 + jnp.sum(jnp.cumprod(usable.astype(jnp.int32), axis=0), axis=0)
        p = jnp.where(u > 0, jnp.minimum(p, state.left) if lower_order_final else p, 1)
        x_u = advance(path, x, t, u, x_0, state.past, p, None)
        after = State(remember(state.past, x_0, now), x, t, p.astype(jnp.int32), state.left - 1)
        return land(u, x_0, x_u), after

    return Solver(step, order=order + 1, init=init)
