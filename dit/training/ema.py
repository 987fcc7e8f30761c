"""Exponential moving averages of the parameters: any number of them, named by their half-lives.

``ema <- ema + (1 - d) (params - ema)`` with ``d = 2^(-1 / h)`` for a half-life of ``h`` steps: after h
steps the past has half of the weight. A decay of 0.9999 is a half-life of 6931 steps. ``d`` itself is
never rounded to float32: ``d ema + (1 - d) params`` would then be off by a part in a thousand at a
half-life of 50,000 steps. With ``rampup`` the half-life at step s is ``min(h, rampup s)``, so that the
random initial parameters are soon forgotten (Karras et al. 2022, code; 0.05 there).
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dit.types import Params, Positive, UserError


@dataclasses.dataclass(frozen=True)
class Ema:
    """The averages to keep: half-lives in steps, and the ramp or None."""

    half_lives: tuple[float, ...]
    rampup: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of the averages in the state, such as ``ema_6931``."""
        return tuple(name_of(h) for h in self.half_lives)


def build(*, half_lives: tuple[Positive, ...] = (6931.0,), rampup: Positive | None = None) -> Ema:
    """Raises UserError for half-lives or a ramp that are not positive, and for equal half-lives."""
    if any(not h > 0 for h in half_lives) or len(set(half_lives)) < len(half_lives):
        raise UserError(f"got EMA half_lives={half_lives}; expected different positive steps")
    if rampup is not None and not rampup > 0:
        raise UserError(f"got EMA rampup={rampup}; expected a positive number or None")
    return Ema(tuple(half_lives), rampup)


def name_of(half_life: float) -> str:
    """The name of the average with this half-life."""
    return f"ema_{int(half_life) if half_life == int(half_life) else half_life}"


def init(ema: Ema, params: Params) -> dict[str, Params]:
    """Averages that start at ``params``, in float32."""
    wide = jax.tree.map(_wide, params)
    return {name: wide for name in ema.names}


def update(
    ema: Ema, averages: dict[str, Params], params: Params, step: Int[Array, ""]
) -> dict[str, Params]:
    """The averages after ``params``, the result of update number ``step`` (the first is 0)."""
    new = {}
    for name, half_life in zip(ema.names, ema.half_lives, strict=True):
        r = rate(half_life, ema.rampup, step)
        new[name] = jax.tree.map(partial(_towards, r), averages[name], params)
    return new


def _towards(r: Float[Array, ""], e: Array, p: Array) -> Array:
    return e + r.astype(e.dtype) * (p.astype(e.dtype) - e)


def rate(half_life: float, rampup: float | None, step: Int[Array, ""]) -> Float[Array, ""]:
    """``1 - d`` at update ``step``, without the cancellation of subtracting d from one."""
    if rampup is None:
        return jnp.asarray(-math.expm1(-math.log(2) / half_life), jnp.float32)
    h = jnp.minimum(half_life, jnp.maximum(rampup * step.astype(jnp.float32), 1e-3))
    return -jnp.expm1(-math.log(2) / h)


def _wide(x: Any) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
