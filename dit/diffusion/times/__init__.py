"""Training-time distributions, one a file; ``build(**kwargs) -> quantile``.

``quantile(path, u) -> t`` maps uniform ``u`` in [0, 1) to times in ``[t_min, t_max]``. Drawing through
the quantile lets any of them be stratified, and its derivative is one over the density: see ``draw``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dit import rng
from dit.diffusion.path import Path
from dit.types import Ids, Key, Times

Quantile = Callable[[Path, Float[Array, "..."]], Float[Array, "..."]]


def draw(
    key: Key,
    ids: Ids,
    path: Path,
    quantile: Quantile,
    *,
    levels: tuple[int, ...] = (),
    strata: int | None = None,
) -> tuple[Times, Times]:
    """Times ``(b, *levels)``, drawn independently, and their densities.

    ``strata``: consecutive sample ids fall into successive intervals of ``1 / strata`` of the unit
    interval (stratified sampling, Kingma et al. 2021, appendix I.1): with ``strata`` equal to the
    batch size each batch covers every quantile once. Each of several levels goes through the intervals
    in an order of its own, anew with every ``strata`` ids.
    """
    u = rng.uniform(rng.per_sample(key, ids), levels)
    if strata is not None:
        low = ids if ids.ndim == 1 else ids[:, 1]  # 2**32 on, they begin anew
        slot = (low % strata).astype(jnp.int32)
        if levels:
            block = low // strata if ids.ndim == 1 else ids.at[:, 1].set(low // strata)
            keys = rng.per_sample(rng.stream(key, "strata"), block)
            slot = _slots(keys, slot, strata, math.prod(levels)).reshape(-1, *levels)
        u = (slot + u) / strata
    return at(path, quantile, u)


def at(
    path: Path, quantile: Quantile, u: Float[Array, "*s"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """The times of ``u`` in the unit interval, and the density of the distribution at them.

    The density of a time is ``1 / (dt / du)``: infinite where many ``u`` have one time. At 0 and 1
    quantiles may have no slope, so ``u`` keeps a last place of float32 away from them.
    """
    inside = jnp.clip(u, 2.0**-24, 1 - 2.0**-24)
    t, slope = jax.jvp(lambda u: quantile(path, u), (inside,), (jnp.ones_like(u),))
    return jnp.clip(t, path.t_min, path.t_max), 1 / slope


def _slots(keys: Key, slot: Int[Array, " b"], strata: int, levels: int) -> Int[Array, "b {levels}"]:
    """Each level's interval: a permutation of the intervals for every level and block of ids.

    ``keys``: of the samples' blocks.
    """

    def one(key, slot):
        each = jax.random.split(key, levels)
        return jax.vmap(lambda k: rng.permuted(k, slot, strata))(each)

    return jax.vmap(one)(keys, slot)
