"""cuDNN's fused attention on NVIDIA GPUs, in float16 or bfloat16."""

from __future__ import annotations

import jax
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
    mask = None if visible is None else visible.dense(q.shape[1], k.shape[1])
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
