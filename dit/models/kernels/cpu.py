"""Attention for CPUs: a derivative by hand, and each product in the layout that BLAS is fastest in.

With ``p = exp(s - max s)`` and ``l`` its row sums, ``out = p v / l``. For an output gradient ``g``, let
``g' = g / l``: then ``dv = p^T g'`` and ``ds = p (g' v^T - rowsum(g' out))``. The weights are never
normalised, and the gradients of k and v are computed transposed: both save passes over ``n^2`` numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.models.kernels.xla import HIDDEN


def attend(
    q: Float[Array, "b q h d"], k: Float[Array, "b k h d"], v: Float[Array, "b k h d"], visible
) -> Float[Array, "b q h d"]:
    """In float32 or better throughout, whatever the inputs' type. No forward-mode derivative."""
    mask = None if visible is None else visible.dense(q.shape[1], k.shape[1])
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return _attend(q.astype(wide), k.astype(wide), v.astype(wide), mask).astype(q.dtype)


@jax.custom_vjp
def _attend(q, k, v, mask):
    return _forward(q, k, v, mask)[0]


def _forward(q, k, v, mask):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # b h n d
    q = q * q.shape[-1] ** -0.5
    s = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    if mask is not None:
        s = jnp.where(mask[:, None], s, HIDDEN)
    p = jnp.exp(s - s.max(-1, keepdims=True))
    total = p.sum(-1, keepdims=True)
    out = jnp.einsum("bhqk,bhkd->bhqd", p, v) / total
    return jnp.swapaxes(out, 1, 2), (q, k, v, p, total, out)


def _backward(residuals, g):
    q, k, v, p, total, out = residuals
    g = jnp.swapaxes(g, 1, 2) / total
    ds = p * (jnp.einsum("bhqd,bhkd->bhqk", g, v) - (g * out).sum(-1, keepdims=True))
    dq = jnp.einsum("bhqk,bhkd->bhqd", ds, k) * q.shape[-1] ** -0.5
    dk = jnp.einsum("bhqd,bhqk->bhdk", q, ds)
    dv = jnp.einsum("bhqd,bhqk->bhdk", g, p)
    return (
        jnp.swapaxes(dq, 1, 2),
        jnp.transpose(dk, (0, 3, 1, 2)),
        jnp.transpose(dv, (0, 3, 1, 2)),
        None,
    )


_attend.defvjp(_forward, _backward)
