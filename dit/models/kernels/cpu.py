"""Attention in plain operations: runs everywhere, with every kind of derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HIDDEN = -1e30  # instead of -inf: a query that sees nothing then gives a mean, not NaN


def attend(
    q: Float[Array, "b q h d"], k: Float[Array, "b k h d"], v: Float[Array, "b k h d"], visible
) -> Float[Array, "b q h d"]:
    """``softmax(q k^T / sqrt(d)) v`` with the products in the inputs' type, softmax in float32."""
    score = jnp.einsum(
        "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32)
    )
    score = score * q.shape[-1] ** -0.5
    mask = None if visible is None else visible.dense(q.shape[1], k.shape[1])
    if mask is not None:
        score = jnp.where(mask[:, None], score, HIDDEN)
    weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weight, v)
