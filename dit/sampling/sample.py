"""The sampling loop: one ``lax.scan`` of a solver over a time grid.

``x_T`` is noise at ``grid[0]`` and the result is data, ``grid[-1] = 0``. Randomness belongs to the
samples: sample i at step n draws from ``rng.stream(keys[i], "solver", n)``, so it does not depend
on the batch, the mesh or the host. Arithmetic is in float32 or wider; the network sees, and the
result has, the dtype of ``x_T``. Wrap calls in ``jax.jit``: outside it, every call compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from dit import rng
from dit.diffusion.path import Path
from dit.diffusion.process import Denoiser
from dit.sampling.denoisers import Held, Memory, Stateful, Tape, as_denoiser
from dit.sampling.solver import Grid, Node, Solver, State, moving
from dit.types import Key, UserError, is_prefix


@struct.dataclass
class Solution:
    """``x_0``; ``evaluations`` of the denoiser (an array where the solver counts as it goes), and, if it
    was asked for, the ``trajectory`` at every node that was visited, ``x_T`` first, ``x_0`` last."""

    x_0: Float[Array, "b ..."]
    evaluations: int | Array
    trajectory: Float[Array, "nodes b ..."] | None = None


def sample(
    key: Key,
    denoise: Callable,
    path: Path,
    solver: Solver,
    grid: Grid,
    x_T: Float[Array, "b ..."],
    *,
    start: int = 0,
) -> Float[Array, "b ..."]:
    """Data ``x_0`` from noise ``x_T``; see ``solve``, which also tells how it got there."""
    return solve(key, denoise, path, solver, grid, x_T, start=start).x_0


def solve(
    key: Key,
    denoise: Callable,
    path: Path,
    solver: Solver,
    grid: Grid,
    x_T: Float[Array, "b ..."],
    *,
    start: int = 0,
    trajectory: bool = False,
) -> Solution:
    """Run ``solver`` over ``grid`` (steps + 1 decreasing times, the last 0), from ``x_T``.

    ``key``: one key, or a ``(b,)`` array with each sample's own. ``denoise``: a ``Denoiser``, or
    any function ``(x_t, t) -> x0_hat`` with ``t`` of shape ``(b,)``. ``start``: the first step taken,
    with ``x_T`` at ``grid[start]``.

    In a grid ``(steps + 1, *prefix)`` each part of a sample has times of its own, where ``prefix`` is a
    prefix of x's shape, and ``t`` too has such a shape. A part may wait, by two equal times, and may be
    at 0 from the start; while it does not move it stays as it is, bit for bit. Parts see each other only
    through the network.

    Raises UserError for a key or grid of another shape, and a ``start`` beyond the grid.
    """
    grid = jnp.asarray(grid)
    if grid.ndim < 1 or grid.shape[0] < 2 or not (grid.ndim == 1 or is_prefix(grid[0], x_T)):
        raise UserError(
            f"got a time grid of shape {grid.shape}; expected (steps + 1,), steps >= 1, or (steps + 1, "
            f"*prefix) with a prefix of the data's {x_T.shape}"
        )
    nodes = grid
    if grid.ndim > 1:
        grid = grid.reshape(grid.shape + (1,) * (x_T.ndim + 1 - grid.ndim))
        nodes = jnp.concatenate([moving(path, grid[:-1], grid[1:])[0], grid[-1:]])
    keys = sample_keys(key, x_T.shape[0])
    work = jnp.promote_types(jnp.promote_types(x_T.dtype, jnp.float32), grid.dtype)
    inner = as_denoiser(denoise)
    steps = grid.shape[0] - 1
    if not 0 <= start < steps:
        raise UserError(f"got start={start}; expected one of the grid's {steps} steps, from 0")
    x = x_T.astype(work)

    def body(carry, now):
        n, t, u = now
        held = None if t.ndim == 0 else Held(t <= u, carry[0], t)
        carry = advance(inner, path, solver, carry, t, u, step_keys(keys, n), x_T.dtype, held)
        return carry, (carry[0].astype(x_T.dtype) if trajectory else None)

    memory = inner.start(x_T) if isinstance(inner, Stateful) else ()
    carry = (x, solver.init(path, x, nodes, start), memory)
    taken = (jnp.arange(start, steps), grid[start:-1], grid[start + 1 :])
    (x, state, _), visited = jax.lax.scan(body, carry, taken)
    if trajectory:
        visited = jnp.concatenate([x_T[None], visited])
    known = solver.evaluations and (grid.ndim == 1 or solver.count is None)
    count = solver.evaluations(steps - start) if known else solver.count(state)
    return Solution(x.astype(x_T.dtype), count, visited)


def advance(
    inner: Denoiser,
    path: Path,
    solver: Solver,
    carry: tuple[Array, State, Memory],
    t: Node,
    u: Node,
    keys: Key,
    dtype: Any,
    held: Held | None = None,
) -> tuple[Array, State, Memory]:
    """One step from t to u of ``carry``: samples, the solver's state and the denoiser's memory.

    ``held``: what does not move, and how the network sees it; ``dtype``: that of what the network sees.
    """
    x, state, memory = carry
    tape = Tape(inner, memory, dtype, x.dtype, held)
    ends = (t, u) if held is None else moving(path, t, u)
    new = solver.step(tape, path, x, *ends, state, keys)
    x, state = new if held is None else kept(held.still, (x, state), new)
    return x, state, tape.memory


def kept(still: Bool[Array, "..."], old: Any, new: Any) -> Any:
    """``old`` where a part does not move, in every array that has the axes of x; ``new`` elsewhere."""

    def one(old, new):
        front = new.ndim - still.ndim
        if front < 0:
            return new
        return jnp.where(still.reshape((1,) * front + still.shape), old, new)

    return jax.tree.map(one, old, new)


def initial_noise(
    keys: Key, shape: Sequence[int], path: Path, dtype=jnp.float32
) -> Float[Array, "b ..."]:
    """``x_T = sigma(t_max) eps`` of shape ``(b, *shape)`` from ``(b,)`` per-sample keys.

    The same keys may be given to ``sample``: the solver's noise is another stream of each.
    """
    eps = initial_eps(keys, shape)
    return (path.sigma(jnp.asarray(path.t_max, eps.dtype)) * eps).astype(dtype)


def initial_eps(keys: Key, shape: Sequence[int]) -> Float[Array, "b ..."]:
    """The unit noise of ``initial_noise``, one draw for each key."""
    return rng.normal(jax.vmap(lambda k: rng.stream(k, "x_T"))(keys), shape)


def sample_keys(key: Key, batch: int) -> Key:
    """Per-sample keys: ``key`` itself if it is ``(batch,)``, else one for each of
    ``arange(batch)``."""
    rng.check_key(key)
    if key.ndim == 0:
        return rng.per_sample(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise UserError(
            f"got keys of shape {key.shape}; expected one key, or ({batch},): one for each sample"
        )
    return key


def step_keys(keys: Key, step: int | Array) -> Key:
    """The ``(b,)`` keys from which a solver draws at ``step``."""
    return jax.vmap(lambda k: rng.stream(k, "solver", step))(keys)
