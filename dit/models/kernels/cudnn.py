"""cuDNN's fused attention on NVIDIA GPUs, in float16 or bfloat16.

Where a mask only hides keys, the visible ones are moved to the front, as attention does not depend on
the order of keys, and the kernel is given their number. Any other mask is passed as an array of all
pairs. In training JAX accepts even lengths only, so odd ones are padded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.types import UserError


def attend(
    q: Float[Array, "b q h d"], k: Float[Array, "b k h d"], v: Float[Array, "b k h d"], visible
) -> Float[Array, "b q h d"]:
    """Raises UserError for float32 inputs: the kernel is for 16-bit ones."""
    if q.dtype.itemsize != 2:
        raise UserError(
            f"cuDNN's attention needs bfloat16 or float16 inputs, got {q.dtype}; build the model with "
            "dtype='bfloat16', or with attention='xla'"
        )
    n_q, n_k = q.shape[1], k.shape[1]
    mask = lengths = None
    if visible is not None and not visible.only_valid():
        mask = jnp.pad(
            visible.dense(n_q, n_k), ((0, 0), (0, n_q % 2), (0, 0)), constant_values=True
        )
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, n_k % 2)))[:, None]
    elif visible is not None and visible.k_valid is not None:
        order = jnp.argsort(~visible.k_valid, axis=1, stable=True)[:, :, None, None]
        k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
        lengths = jnp.maximum(visible.k_valid.sum(1, dtype=jnp.int32), 1)  # none would give NaN
    elif n_k % 2:
        lengths = jnp.full((k.shape[0],), n_k, jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, key_value_seq_lengths=lengths, implementation="cudnn"
    )[:, :n_q]
