"""The probability-flow ODE by an adaptive Runge-Kutta method, Tsit5 of diffrax (Tsitouras 2011).

Each interval of the grid is one adaptive solve: with ``steps=1`` the tolerances alone decide. Every
sample has steps of its own, so its result does not depend on the batch; the network is called for
all of them at once, as often as the slowest needs. The variable is log t, in which no rounding is
amplified near data, down to t_min (where that is 0, to a thousandth of t_max); the last evaluation
goes from there to ``x0_hat``.

Its number of steps is not bounded beforehand, so that derivatives are those of forward mode
(``jax.jvp``); for gradients take a solver with a fixed number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dit.diffusion.path import derivatives
from dit.sampling.denoisers import evaluate_if, forgetful
from dit.sampling.solver import Solver, at, land
from dit.types import Count, Tiny, UserError

EVALUATIONS = 6  # a step of Tsit5, which keeps the last of its seven stages for the next step
FIRST = 0.2  # step in log t that is tried first in an interval, unless the interval is shorter


def build(*, rtol: Tiny = 1e-4, atol: Tiny = 1e-4, max_steps: Count = 4096) -> Solver:
    """Tolerances of a step's error, relative and absolute. A run needing more than ``max_steps`` in
    an interval stops with an error. Raises UserError without diffrax."""
    try:
        import diffrax
        import equinox
    except ImportError as error:
        raise UserError("solver 'diffrax_adaptive' needs diffrax: pip install diffrax") from error
    controller = diffrax.PIDController(
        rtol=rtol, atol=atol, norm=lambda e: jnp.sqrt(jnp.mean(jnp.square(e)))
    )

    def step(denoise, path, x, t, u, count, keys):
        plain = forgetful(denoise, "diffrax_adaptive")
        held = getattr(denoise, "held", None)
        cut = path.t_min if path.t_min > 0 else 1e-3 * path.t_max
        end = jnp.where(u > 0, u, jnp.minimum(t, cut))
        # What the denoiser closes over (parameters, conditions) becomes arguments of the solve.
        times = at(t, x) if t.ndim == 0 else t
        explicit = equinox.filter_closure_convert(lambda x, s: plain(x, at(s, x)), x, times)
        arrays, static = equinox.partition(explicit, equinox.is_array)
        estimate = for_one(lambda arrays, x, s: equinox.combine(arrays, static)(x, s))

        def slope(log_t, y, arrays, t, end):
            """``dx / d log t``, in which sigma occurs only as the bounded ``t sigma' / sigma``."""
            s = jnp.clip(jnp.exp(log_t), end, t)
            alpha, alpha_dot, sigma, sigma_dot = derivatives(path, s)
            x_0 = estimate(arrays, y, s)
            return s * alpha_dot * x_0 + s * sigma_dot / sigma * (y - alpha * x_0)

        def scalar(y):
            """The ends, the first step and the slope, in log t."""
            first = jnp.maximum(jnp.log(end / t), -FIRST)
            return jnp.log(t), jnp.log(end), first, lambda s, y, arrays: slope(s, y, arrays, t, end)

        def several(y, t, end, span):
            """The same in the share of the way, as each part has its own in log t."""
            first = FIRST / jnp.maximum(jnp.abs(span).max(), FIRST)

            def along(s, y, arrays):
                return span * slope(jnp.log(t) + s * span, y, arrays, t, end)

            return jnp.zeros_like(first), jnp.ones_like(first), first, along

        def solve(y, *levels):
            t0, t1, first, along = (several if levels else scalar)(y, *levels)
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(along),
                diffrax.Tsit5(),
                t0=t0,
                t1=t1,
                dt0=first,
                y0=y,
                args=arrays,
                stepsize_controller=controller,
                adjoint=diffrax.ForwardMode(),
                max_steps=max_steps,
            )
            return solution.ys[0], solution.stats["num_steps"]

        levels, lands = (), u <= 0
        if t.ndim:
            still = jnp.zeros(t.shape, bool) if held is None else held.still
            levels = (t, end, jnp.where(still, 0, jnp.log(end / t)))
            lands = jnp.any(lands & ~still)
        x, steps = jax.vmap(solve)(x, *levels)
        x_0 = evaluate_if(lands, plain, x, at(end, x), x)
        count += 1 + EVALUATIONS * jnp.max(steps) + lands
        return land(u, x_0, x), count.astype(jnp.int32)

    return Solver(
        step,
        order=None,
        init=lambda path, x, grid, start: jnp.zeros((), jnp.int32),
        evaluations=None,
        count=lambda state: state,
    )


def for_one(denoise):
    """``denoise(arrays, x, t)`` as a function of one sample, to be called under ``jax.vmap`` only.

    Mapped over the batch it is the batched call itself, so that a denoiser with a batch of
    conditions serves a loop that is written for one sample.
    """

    @jax.custom_batching.custom_vmap
    def one(arrays, x, t):
        return x  # a stand-in of the right shape: the rule is what runs

    @one.def_vmap
    def batched(size, mapped, arrays, x, t):
        x, t = (
            a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_mapped in zip((x, t), mapped[1:], strict=True)
        )
        return denoise(arrays, x, t), True

    return one
