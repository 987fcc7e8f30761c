"""What a solver is, and the pieces that every solver is made of.

A solver moves ``x`` from time ``t`` to a smaller time ``u``. Everything is written in ``x0_hat``
and in coefficients that stay finite at both ends of a path: nothing divides by alpha or by the
sigma of the time it arrives at. With half-log-SNR ``lambda = log(alpha / sigma)`` and ``h =
lambda_u - lambda_t``, which is infinite at the ends, the solvers use ``exp(-h) = alpha_t sigma_u /
(alpha_u sigma_t)``, which is not. At ``u = 0`` every solver lands on ``x0_hat``: the exact limit
of its step.

Where a sample has several levels, ``t`` and ``u`` are arrays with the axes of x: everything is
elementwise in them, and a part that does not move (``t == u``) stays as it is, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from dit.diffusion.path import Path
from dit.diffusion.process import Denoiser
from dit.types import Key

# steps + 1 falling times, the last 0: scalars, or arrays with the shape of a prefix of x
Grid = Float[Array, "nodes ..."]
Node = Float[Array, "..."]  # a time of a grid: a scalar, or an array with as many axes as x
# A pytree of arrays that keep their shapes and dtypes from step to step. An array with as many axes as
# x, or with more in front, has an entry for each element of x.
State = Any
Step = Callable[[Denoiser, Path, Array, Node, Node, State, Key], tuple[Array, State]]


def no_state(path: Path, x: Float[Array, "b ..."], grid: Grid, start: int) -> State:
    """The state of a solver that remembers nothing."""
    return ()


def starts(path: Path, grid: Grid, start: int = 0) -> Float[Array, "calls ..."]:
    """The evaluation times of a solver that calls the network once, where each step starts."""
    return grid[start:-1]


def starts_and_ends(path: Path, grid: Grid, start: int = 0) -> Float[Array, "calls ..."]:
    """The evaluation times of a solver that calls it again where each step but the last ends."""
    return jnp.concatenate([grid[start:-1], grid[start + 1 : -1]])


@dataclasses.dataclass(frozen=True)
class Solver:
    """``step(denoise, path, x, t, u, state, keys) -> (x_u, state)``, and what to know about it.

    ``t`` and ``u`` are nodes, ``keys`` this step's ``(b,)`` keys. ``init(path, x, grid, start)``
    gives the state before step ``start`` of the grid. ``evaluations(steps)``: exact number of
    denoiser evaluations, None where the solver decides as it goes. ``count(state)`` reads it from the
    last state: of such a solver, and of one that calls more often where a part of a sample begins to
    move. ``times(path, grid, start)``: where they take place. ``order``: the order of global
    convergence, None for a stochastic or an adaptive solver.
    """

    step: Step
    order: int | None
    init: Callable[[Path, Array, Grid, int], State] = no_state
    evaluations: Callable[[int], int] | None = lambda steps: steps
    times: Callable[[Path, Grid, int], Array] = starts
    count: Callable[[State], Array] | None = None


class Transition(NamedTuple):
    """The path's coefficients at both ends of a step; ``decay = exp(-h)`` lies in ``[0, 1)``."""

    alpha_t: Array
    sigma_t: Array
    alpha_u: Array
    sigma_u: Array
    decay: Array


def transition(path: Path, t: Float[Array, "*s"], u: Float[Array, "*s"]) -> Transition:
    """Coefficients of the step from ``t`` to ``u < t``, exact at both ends of every path."""
    alpha_t, sigma_t, alpha_u, sigma_u = path.alpha(t), path.sigma(t), path.alpha(u), path.sigma(u)
    # At the first node alpha may be 0: a "step" from there to itself, which has no result, is finite.
    decay = alpha_t / jnp.where(alpha_u > 0, alpha_u, 1) * (sigma_u / sigma_t)
    return Transition(alpha_t, sigma_t, alpha_u, sigma_u, jnp.clip(decay, 0, 1))


def half_logsnr(path: Path, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``lambda = log(alpha / sigma)``: +inf at data, -inf where alpha is 0."""
    return jnp.log(path.alpha(t)) - jnp.log(path.sigma(t))


def at(t: Shaped[Array, "..."], x: Float[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """The time as the denoiser takes it: one a sample, or as the shortest prefix of x that will do."""
    if t.ndim == 0:
        return jnp.broadcast_to(t, x.shape[:1])
    last = max([1, *(axis + 1 for axis, size in enumerate(t.shape) if size > 1)])
    return jnp.broadcast_to(t.reshape(t.shape[:last]), x.shape[:last])


def moving(path: Path, t: Node, u: Node) -> tuple[Node, Node]:
    """``t`` and ``u``, with a whole step from t_max to 0 in place of those that do not move.

    The results of such parts are not used; this keeps their coefficients defined.
    """
    still = t <= u
    return jnp.where(still, path.t_max, t), jnp.where(still, 0, u)


def noise_of(path: Path, x: Array, x_0: Array, t: Node) -> Array:
    """``eps_hat = (x_t - alpha x0_hat) / sigma``."""
    return (x - path.alpha(t) * x_0) / path.sigma(t)


def land(u: Node, x_0: Array, x_u: Array) -> Array:
    """``x_u``, but ``x0_hat`` itself, bit for bit, when the step ends at data."""
    return jnp.where(u > 0, x_u, x_0)
