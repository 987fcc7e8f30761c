"""What multistep solvers share: past estimates, and exact integrals of polynomials through them.

In half-log-SNR, with ``s = lambda - lambda_t`` from 0 to h, the probability-flow ODE has the
solution ``x_u = (sigma_u / sigma_t) x + alpha_u int_0^h exp(s - h) D(s) ds`` (Lu et al. 2022b,
prop. 4.1). A multistep solver puts a polynomial through past estimates D_k, at ``s = r_k h``, in
the place of D.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.sampling.solver import Grid, Node


class Past(NamedTuple):
    """Past estimates and their half-log-SNRs, latest first; an entry with -inf is empty.

    So is, in effect, an estimate at a node with alpha = 0: it is infinitely far away in log-SNR and
    no polynomial goes through it. A solver then builds up its order from the node after it.
    """

    x_0: Float[Array, "depth b ..."]
    half_logsnr: Float[Array, "depth ..."]


def nothing(x: Float[Array, "b ..."], depth: int, grid: Grid) -> Past:
    """A memory of ``depth`` empty entries for samples like ``x`` on such a grid."""
    times = jnp.full((depth, *grid.shape[1:]), -jnp.inf, x.dtype)
    return Past(jnp.zeros((depth, *x.shape), x.dtype), times)


def remember(past: Past, x_0: Float[Array, "b ..."], half_logsnr: Node) -> Past:
    """``past`` with a new first entry, and without its last."""
    return Past(
        jnp.concatenate([x_0[None], past.x_0[:-1]]),
        jnp.concatenate([half_logsnr[None].astype(x_0.dtype), past.half_logsnr[:-1]]),
    )


def positions(past: Past, now: Node, h: Node) -> tuple[Array, Array]:
    """``r_k = (lambda_k - now) / h``, negative, for each entry, and whether it can be used.

    None can where ``now`` or ``h`` is infinite: a step to data, or one from a node with alpha = 0. Nor
    can one at the same time as another, to rounding.
    """
    now, h = now[None], h[None]
    usable = jnp.isfinite(past.half_logsnr) & (past.half_logsnr < now)
    usable &= jnp.isfinite(h) & (h > 0)
    gap = jnp.where(usable, past.half_logsnr - now, -1.0)
    return gap / jnp.where(jnp.isfinite(h) & (h > 0), h, 1.0), usable


def moments(h: Node, count: int) -> Float[Array, "count ..."]:
    """``c_i = int_0^h exp(s - h) (s / h)^i ds`` for i below ``count`` and finite ``h > 0``.

    By parts ``c_i = 1 - i c_{i-1} / h`` from ``c_0 = 1 - exp(-h)``, which cancels badly for small
    h: there by the series ``c_i = h sum_m (-h)^m i! / (i + m + 1)!``.
    """
    terms, one = range(18), (1,) * h.ndim
    table = np.array(
        [[math.factorial(i) / math.factorial(i + m + 1) for m in terms] for i in range(count)]
    )
    powers = (-h)[None] ** np.arange(18).reshape(18, *one)
    terms = jnp.asarray(table.reshape(count, 18, *one), h.dtype) * powers[None]
    series = h[None] * jnp.sum(terms, axis=1)
    parts = [-jnp.expm1(-h)]
    for i in range(1, count):
        parts.append(1 - i * parts[-1] / h)
    return jnp.where(h[None] < 1, series, jnp.stack(parts))


def quadrature(nodes: list[Node], c: Float[Array, "n ..."]) -> list[Node]:
    """Weights w with ``sum_k w_k r_k^i = c_i``: they integrate polynomials below degree n exactly.

    Each is the functional c applied to one Lagrange polynomial, factor by factor.
    """
    weights = []
    for k, r in enumerate(nodes):
        m = c
        for j, other in enumerate(nodes):
            if j != k:
                m = (m[1:] - other[None] * m[:-1]) / (r - other)[None]
        weights.append(m[0])
    return weights
