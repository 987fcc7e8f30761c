"""Denoisers in the sampling loop: any function as a denoiser, denoisers that remember, and pairs.

Guidance needs two estimates, conditional and unconditional (or a good and a weak model): a ``Pair``
gives both, from one network call where it can. A guidance rule with momentum needs memory: a
``Stateful`` denoiser is a pure function of (x_t, t, memory), and the loop carries the memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dit.diffusion.process import Denoiser, Process, denoiser
from dit.sampling.solver import Node, at
from dit.types import ApplyFn, Cond, Params, Times, UserError

GUIDING = ("label", "context", "pooled", "tokens")  # fields that guidance can guide towards
Memory = Any
Estimate = tuple[Array, Array | None]  # x0_hat and the learned variance, as in Denoiser.full


@dataclasses.dataclass(frozen=True)
class Stateful(Denoiser):
    """A denoiser with memory: ``advance(x_t, t, memory) -> ((x0_hat, v), memory)``.

    ``start(x)`` is the memory before the first evaluation; ``full`` evaluates as if it were first.
    """

    start: Callable[[Array], Memory]
    advance: Callable[[Array, Times, Memory], tuple[Estimate, Memory]]


def stateful(start: Callable, advance: Callable) -> Stateful:
    """A ``Stateful`` denoiser from its two functions."""
    return Stateful(lambda x, t: advance(x, t, start(x))[0], start, advance)


def as_denoiser(denoise: Callable) -> Denoiser:
    """``denoise`` itself, or a plain function ``(x_t, t) -> x0_hat`` as a ``Denoiser``."""
    if isinstance(denoise, Denoiser):
        return denoise
    return Denoiser(lambda x, t: (denoise(x, t), None))


def map_x0(denoise: Callable, change: Callable[[Array, Array, Times], Array]) -> Denoiser:
    """The denoiser whose estimate is ``change(x0_hat, x_t, t)``; memory and variance are kept."""
    inner = as_denoiser(denoise)
    if isinstance(inner, Stateful):

        def advance(x, t, memory):
            (x_0, v), memory = inner.advance(x, t, memory)
            return (change(x_0, x, t), v), memory

        return stateful(inner.start, advance)

    def full(x, t):
        x_0, v = inner.full(x, t)
        return change(x_0, x, t), v

    return Denoiser(full)


@dataclasses.dataclass(frozen=True)
class Held:
    """What does not move in a step: where ``still`` is true, the network sees ``x`` and ``t``."""

    still: Bool[Array, "..."]
    x: Array
    t: Node


class Tape:
    """The denoiser that a solver sees within one step: it threads memory from call to call.

    The network is given ``x`` in the dtype of the samples; solvers compute in ``work``. ``held``: what
    the network sees of the parts that do not move, whatever the solver gives it.
    """

    def __init__(
        self, denoise: Denoiser, memory: Memory, dtype: Any, work: Any, held: Held | None = None
    ):
        self.denoise, self.memory, self.dtype, self.work = denoise, memory, dtype, work
        self.held = held

    def _advance(self, x, t, memory):
        if self.held is not None:
            still = self.held.still
            x = jnp.where(still, self.held.x, x)
            t = jnp.where(at(still, x), at(self.held.t, x), t)
        x = x.astype(self.dtype)
        if isinstance(self.denoise, Stateful):
            (x_0, v), memory = self.denoise.advance(x, t, memory)
        else:
            x_0, v = self.denoise.full(x, t)
        if x_0.shape != x.shape:
            raise ValueError(
                f"the denoiser gave shape {x_0.shape} for x_t of shape {x.shape}; expected the same"
            )
        return (x_0.astype(self.work), None if v is None else v.astype(self.work)), memory

    def full(self, x: Array, t: Times) -> Estimate:
        estimate, self.memory = self._advance(x, t, self.memory)
        return estimate

    def __call__(self, x: Array, t: Times) -> Array:
        return self.full(x, t)[0]

    def when(self, wanted: Bool[Array, ""], x: Array, t: Times, otherwise: Array) -> Array:
        x_0, self.memory = jax.lax.cond(
            wanted,
            lambda x, t, memory: _first(self._advance(x, t, memory)),
            lambda x, t, memory: (otherwise, memory),
            x,
            t,
            self.memory,
        )
        return x_0


def _first(advanced):
    (x_0, _), memory = advanced
    return x_0, memory


def evaluate_if(
    wanted: Bool[Array, ""], denoise: Denoiser | Tape, x: Array, t: Times, otherwise: Array
) -> Array:
    """``denoise(x, t)`` where the scalar ``wanted`` is true; else ``otherwise``, without the
    call."""
    if isinstance(denoise, Tape):
        return denoise.when(wanted, x, t, otherwise)
    return jax.lax.cond(wanted, lambda: denoise(x, t).astype(x.dtype), lambda: otherwise)


def forgetful(denoise: Denoiser | Tape, solver: str) -> Denoiser | Tape:
    """``denoise`` for a solver that calls it in a loop of its own; UserError if it has memory."""
    inner = denoise.denoise if isinstance(denoise, Tape) else denoise
    if isinstance(inner, Stateful):
        raise UserError(
            f"solver {solver!r} tries steps and rejects them, so it cannot carry the memory of this "
            "denoiser (momentum of guidance 'apg'): set its momentum to 0, or use another solver"
        )
    return denoise


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two estimates that guidance mixes.

    ``both(x_t, t)``: the conditional and the unconditional ``(x0_hat, v)``. ``conditional``: the
    first alone, for times at which guidance is off and a second evaluation would be wasted.
    """

    both: Callable[[Array, Times], tuple[Estimate, Estimate]]
    conditional: Denoiser


def pair(conditional: Callable, unconditional: Callable) -> Pair:
    """A pair from two denoisers, evaluated one after the other."""
    first, second = as_denoiser(conditional), as_denoiser(unconditional)
    return Pair(lambda x, t: (first.full(x, t), second.full(x, t)), first)


def twins(cond: Cond, negative: Cond | None, batch: int) -> Cond:
    """``cond`` of each of ``batch`` samples, and ``negative`` (None: the null condition) beside it."""
    b = batch
    kept = jnp.zeros((b,), bool) if cond.drop is None else cond.drop
    null = jnp.ones((b,), bool)
    if negative is not None:
        null = jnp.zeros((b,), bool) if negative.drop is None else negative.drop
    halves = jnp.stack([kept, null], axis=1).reshape(2 * b)
    if negative is None:
        twice = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), cond.replace(drop=None))
    else:
        twice = jax.tree.map(
            lambda a, n: jnp.stack([a, n], axis=1).reshape(2 * b, *a.shape[1:]),
            *(each.replace(drop=None) for each in (cond, negative)),
        )
    return twice.replace(drop=halves)


def paired(
    process: Process, apply_fn: ApplyFn, params: Params, cond: Cond, negative: Cond | None = None
) -> Pair:
    """Both estimates of one network in a single call of batch ``2 b``.

    ``negative``: the condition of the second, with the same fields; by default the null one. The two
    copies of a sample lie side by side, so that a batch sharded over devices stays where
    it is. Raises UserError for a ``cond`` that conditions on nothing.
    """
    if all(getattr(cond, name) is None for name in GUIDING):
        raise UserError(
            "got a condition without label or context; guidance needs one to guide towards: give a "
            "label, a context or a pooled embedding, or sample without guidance"
        )

    def both(x: Float[Array, "b ..."], t: Times) -> tuple[Estimate, Estimate]:
        b = x.shape[0]
        full = denoiser(process, apply_fn, params, twins(cond, negative, b)).full
        x_0, v = full(jnp.repeat(x, 2, axis=0), jnp.repeat(t, 2, axis=0))
        split = [None if a is None else a.reshape(b, 2, *a.shape[1:]) for a in (x_0, v)]
        first, second = (tuple(None if a is None else a[:, i] for a in split) for i in (0, 1))
        return first, second

    return Pair(both, denoiser(process, apply_fn, params, cond))
