"""One guidance rule a file; ``build(**kwargs) -> Guidance``, a function of a pair of denoisers.

``guidance(pair, path, grid) -> Denoiser``: ``pair`` gives the conditional and the unconditional
estimate (``denoisers.paired`` gets both from one network call of twice the batch), ``grid`` is the
time grid of the run. The result works with every solver, and keeps the conditional's learned
variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from dit.diffusion.path import Path
from dit.diffusion.process import Denoiser
from dit.sampling.denoisers import Pair
from dit.sampling.solver import Grid


@dataclasses.dataclass(frozen=True)
class Guidance:
    """A rule that makes one denoiser of two.

    ``evaluations``: network evaluations a sample for each evaluation of the result; a function
    ``(path, t) -> counts`` where that depends on the time.
    """

    guide: Callable[[Pair, Path, Grid], Denoiser]
    evaluations: int | Callable[[Path, Array], Array] = 2

    def __call__(self, pair: Pair, path: Path, grid: Grid) -> Denoiser:
        return self.guide(pair, path, grid)


def extrapolate(
    conditional: Array, unconditional: Array, scale: Array | float, channels: int | None = None
) -> Array:
    """``D_u + w (D_c - D_u)``: the same in x_0, eps, v or score, as all are affine in each
    other. ``channels``: of the first so many alone; the others are the conditional's."""
    mixed = unconditional + scale * (conditional - unconditional)
    if channels is None:
        return mixed
    return jnp.where(jnp.arange(mixed.shape[-1]) < channels, mixed, conditional)


def off() -> Guidance:
    """No guidance: the conditional denoiser, one evaluation."""
    return Guidance(lambda pair, path, grid: pair.conditional, 1)
