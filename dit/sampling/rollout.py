"""Sampling by a schedule matrix, row x frame, of clips longer than the network sees at once.

``windowed`` runs any solver over any schedule (``sampling/rollouts``) under one ``lax.scan``: a row is
one step of a window of frames, which ends with the newest frame that moves. ``cached`` makes one block
after another, each by ``solve``, and remembers them in what ``write`` returns: what it needs beside the
clip itself does not depend on the length.

Noise belongs to a sample and a frame: a longer clip begins like a shorter one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dit import rng
from dit.diffusion.path import Path
from dit.diffusion.process import Denoiser
from dit.sampling.denoisers import Held, Stateful
from dit.sampling.guidance import Guidance
from dit.sampling.rollouts import Clip, Starts
from dit.sampling.sample import Solution, advance, solve, step_keys
from dit.sampling.solver import Grid, Solver
from dit.types import Key, Times, Video

Cache = TypeVar("Cache")


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a schedule and what the network sees of each.

    ``first``: of the ``window`` frames that are seen. ``node``: where in the grid they are before the
    row, and ``after`` it. ``lands``: whether all that moves ends as data.
    """

    window: int
    first: Int[np.ndarray, " rows"]
    node: Int[np.ndarray, "rows window"]
    after: Int[np.ndarray, "rows window"]
    lands: Bool[np.ndarray, " rows"]


def rows(starts: Starts, clip: Clip, steps: int) -> Rows:
    """The rows in which something moves. A frame that has moved is never outside of the window again."""
    count = int(starts.max()) + steps
    at = np.arange(count)
    window = min(clip.window, clip.frames)
    begun = np.searchsorted(starts, at, side="right")  # starts never fall
    first = np.clip(begun - window, 0, clip.frames - window)
    seen = starts[first[:, None] + np.arange(window)]
    node, after = (np.clip(at[:, None] + more - seen, 0, steps) for more in (0, 1))
    lands = ((after == steps) | (after == node)).all(1)
    return Rows(window, first, node, after, lands)


def frame_noise(
    keys: Key, name: str, frames: Int[Array, " f"], shape: tuple[int, ...]
) -> Float[Array, "b f ..."]:
    """Unit noise of a named stream: that of each sample's every frame is its own."""

    def one(key, frame):
        return jax.random.normal(rng.stream(key, name, frame), shape)

    return jax.vmap(lambda key: jax.vmap(lambda frame: one(key, frame))(frames))(keys)


def windowed(
    keys: Key,
    denoise: Denoiser,
    path: Path,
    solver: Solver,
    grid: Grid,
    schedule: Rows,
    frames: int,
    shape: tuple[int, ...],
    *,
    known: Float[Array, "b g ..."] | None = None,
    noise: float = 0.0,
) -> Solution:
    """Clips of ``frames`` frames of ``shape`` (h, w, c); the first ones are ``known``.

    ``grid``: of one frame, ``(steps + 1,)``. ``noise``: the time at which the network is shown what is
    done. ``evaluations`` are those of the denoiser.
    """
    length, axis, work = schedule.window, 1, jnp.promote_types(jnp.float32, grid.dtype)
    eps = frame_noise(keys, "x_T", jnp.arange(frames), shape)
    x = (path.sigma(jnp.asarray(path.t_max, eps.dtype)) * eps).astype(work)
    if known is not None:
        x = jax.lax.dynamic_update_slice_in_dim(x, known.astype(work), 0, axis)
    ndim = x.ndim
    every = jnp.broadcast_to(
        grid.reshape(-1, *(1,) * ndim), (len(grid), 1, frames, *(1,) * (ndim - 2))
    )

    def parts(change, *trees):
        """``change(axis, *arrays)`` of all arrays that have an entry for each frame."""

        def one(array, *others):
            along = array.ndim - ndim + axis
            has = array.ndim >= ndim and array.shape[along] == frames
            return change(along, array, *others) if has else (others or (array,))[0]

        return jax.tree.map(one, *trees)

    def body(carry, now):
        n, first, node, after = now
        t, u = (grid[k].reshape(1, -1, *(1,) * (ndim - 2)) for k in (node, after))
        seen = parts(lambda along, a: jax.lax.dynamic_slice_in_dim(a, first, length, along), carry)
        shown, told = seen[0], t
        if noise:
            fresh = frame_noise(keys, "context", first + jnp.arange(length), shape)
            shown, told = context(path, shown, t, fresh, noise)
        held = Held(t <= u, shown, told)
        new = advance(denoise, path, solver, seen, t, u, step_keys(keys, n), jnp.float32, held)
        put = jax.lax.dynamic_update_slice_in_dim
        return parts(lambda along, a, b: put(a, b, first, along), carry, new), None

    memory = denoise.start(x.astype(jnp.float32)) if isinstance(denoise, Stateful) else ()
    carry = (x, solver.init(path, x, every, 0), memory)
    taken = (schedule.first, schedule.node, schedule.after)
    taken = tuple(jnp.asarray(each, jnp.int32) for each in taken)
    numbers = jnp.arange(len(schedule.first))
    (x, state, _), _ = jax.lax.scan(body, carry, (numbers, *taken))
    count = calls(solver, schedule) if solver.count is None else solver.count(state)
    return Solution(x.astype(jnp.float32), count)


def context(
    path: Path, x: Video, t: Float[Array, "_ f ..."], eps: Video, noise: float
) -> tuple[Float[Array, "b f ..."], Float[Array, "_ f ..."]]:
    """``x`` and its times as the network sees them: what is done is noised to the time ``noise``."""
    level = jnp.asarray(noise, x.dtype)
    noised = path.alpha(level) * x + path.sigma(level) * eps
    return jnp.where(t <= 0, noised, x), jnp.where(t <= 0, level, t)


def calls(solver: Solver, schedule: Rows) -> int:
    """How often the denoiser is called: a row that lands costs what a solver's last step does."""
    last = solver.evaluations(1)
    each = solver.evaluations(2) - last
    lands = int(schedule.lands.sum())
    return lands * last + (len(schedule.lands) - lands) * each


def guided_calls(solver: Solver, guidance: Guidance, path: Path, grid: Grid, schedule: Rows) -> int:
    """Evaluations of the network where the rule of guidance is on at some times and off at others."""
    moves = schedule.node != schedule.after
    starts = np.asarray(grid)[schedule.node]
    ends = np.where(moves, np.asarray(grid)[schedule.after], starts)
    twice = solver.evaluations(2) - solver.evaluations(1) > 1
    at = np.concatenate([starts, ends[~schedule.lands]]) if twice else starts
    return int(np.asarray(guidance.evaluations(path, jnp.asarray(at))).max(1).sum())


def cached(
    keys: Key,
    denoise: Callable[[Cache], Denoiser],
    write: Callable[[Cache, Video, Times], Cache],
    cache: Cache,
    path: Path,
    solver: Solver,
    grid: Grid,
    frames: int,
    shape: tuple[int, ...],
    *,
    block: int,
    cell: int = 1,
    known: Float[Array, "b g ..."] | None = None,
    noise: float = 0.0,
) -> Solution:
    """Clips of ``frames`` frames of ``shape`` (h, w, c), ``block`` after block, with a cache.

    ``denoise(cache)`` is the denoiser of a block that comes next; ``write(cache, x, t)`` remembers a
    block. Both see whole tokens, of ``cell`` frames. ``known``: the first frames. The last block may
    reach beyond the end; what does is cut off. ``evaluations`` have those of ``write``.
    """
    given = 0 if known is None else known.shape[1]
    blocks = -(-(frames - given) // block)

    def remember(cache: Cache, x: Video, first: Int[Array, ""]) -> Cache:
        t = jnp.zeros(x.shape[:2], x.dtype)
        if noise:
            fresh = frame_noise(keys, "context", first + jnp.arange(x.shape[1]), shape)
            wide = t.reshape(*t.shape, *(1,) * (x.ndim - 2))
            x, t = context(path, x, wide, fresh, noise)
            t = t.reshape(x.shape[:2])
        return write(cache, x, t)

    if given:
        pieces = known.reshape(len(known), given // cell, cell, *shape).swapaxes(0, 1)
        at = cell * jnp.arange(given // cell)
        cache, _ = jax.lax.scan(
            lambda cache, now: (remember(cache, *now), None), cache, (pieces, at)
        )

    def body(carry: tuple[Cache, Any], i: Int[Array, ""]):
        cache, count = carry
        first = given + block * i
        eps = frame_noise(keys, "x_T", first + jnp.arange(block), shape)
        x_T = path.sigma(jnp.asarray(path.t_max, eps.dtype)) * eps
        own = jax.vmap(lambda key: rng.stream(key, "block", i))(keys)
        solution = solve(own, denoise(cache), path, solver, grid, x_T)
        return (remember(cache, solution.x_0, first), count + solution.evaluations), solution.x_0

    writes = given // cell + blocks
    start = (cache, jnp.asarray(writes, jnp.int32))
    (_, count), made = jax.lax.scan(body, start, jnp.arange(blocks))
    x = jnp.moveaxis(made, 0, 1).reshape(len(keys), blocks * block, *shape)
    if given:
        x = jnp.concatenate([known.astype(x.dtype), x], 1)
    return Solution(x[:, :frames], count)
