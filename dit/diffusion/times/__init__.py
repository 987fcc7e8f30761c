"""Training-time distributions, one a file; ``build(**kwargs) -> quantile``.

``quantile(path, u) -> t`` maps uniform ``u`` in [0, 1) to times in ``[t_min, t_max]``. Drawing through
the quantile lets any of them be stratified: see ``draw``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dit import rng
from dit.diffusion.path import Path
from dit.types import Key, Times

Quantile = Callable[[Path, Float[Array, "..."]], Float[Array, "..."]]


def draw(
    keys: Key,
    ids: Int[Array, "b"],
    path: Path,
    quantile: Quantile,
    *,
    frames: int | None = None,
    strata: int | None = None,
) -> Times:
    """Times ``(b,)``, or ``(b, frames)`` drawn independently a frame, from per-sample keys.

    ``strata``: consecutive sample ids fall into successive intervals of ``1 / strata`` of the unit
    interval (stratified sampling, Kingma et al. 2021, appendix I.1): with ``strata`` equal to the
    batch size each batch covers every quantile once.
    """
    u = rng.uniform(keys, () if frames is None else (frames,))
    if strata is not None:
        slot = (ids % strata).reshape(ids.shape + (1,) * (u.ndim - 1))
        u = (slot + u) / strata
    return jnp.clip(quantile(path, u), path.t_min, path.t_max)
