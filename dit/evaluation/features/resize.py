"""The rules by which pictures are scaled for a network. They change a score, so a protocol names them.

``cubic``: antialiased (Keys, a = -1/2), clipped to [0, 255], not rounded. ``bilinear``: half-pixel
centres without antialiasing, as PyTorch's ``interpolate``. ``bilinear_tf1``: TensorFlow 1's
``resize_bilinear``, whose output pixel i is the input at ``i h / s``, without half a pixel.
``pil_bicubic``: Pillow's, antialiased, rounded to whole numbers after each of its two passes.

Every rule is a matrix for the rows and one for the columns.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Rule = Literal["cubic", "bilinear", "bilinear_tf1", "pil_bicubic"]
FIRST, SECOND = "nhwc,sh->nswc", "nhwc,sw->nhsc"


def scaled(x: Float[Array, "n h w c"], side: int, rule: Rule) -> Float[Array, "n s s c"]:
    """Pictures in [0, 255] at ``side`` pixels by the rule."""
    if rule == "cubic":
        shape = (len(x), side, side, x.shape[-1])
        return jnp.clip(jax.image.resize(x, shape, "cubic"), 0, 255)
    passes = [(FIRST, x.shape[1]), (SECOND, x.shape[2])]
    if rule == "pil_bicubic":
        passes.reverse()  # Pillow scales the rows of pixels first
    for product, old in passes:
        if rule == "pil_bicubic" and old == side:
            continue
        weights = jnp.asarray(matrix(rule, old, side), jnp.float32)
        x = jnp.einsum(product, x, weights, precision="highest")
        if rule == "pil_bicubic":
            x = jnp.clip(jnp.floor(x + 0.5), 0, 255)
    return x


@functools.cache
def matrix(rule: Rule, old: int, new: int) -> np.ndarray:
    """Weights ``(new, old)`` of ``bilinear``, ``bilinear_tf1`` and ``pil_bicubic``."""
    if rule == "pil_bicubic":
        return cubic(old, new, antialias=True)
    at = np.arange(new) * (old / new)
    if rule == "bilinear":
        at = (np.arange(new) + 0.5) * (old / new) - 0.5
    at = np.clip(at, 0, old - 1)[:, None]
    return np.maximum(0, 1 - np.abs(at - np.arange(old)))


def cubic(old: int, new: int, *, antialias: bool, scale: float | None = None) -> np.ndarray:
    """Weights ``(new, old)`` of bicubic scaling with half-pixel centres, as Pillow and PyTorch have it.

    With ``antialias`` the kernel (a = -1/2) widens with the step, and weights outside of the picture
    are left out; without it (a = -3/4) the edge is repeated. ``scale``: output over input size, where
    that is not ``new / old``.
    """
    step = 1 / scale if scale else old / new
    centre = (np.arange(new) + 0.5) * step
    if antialias:
        wide = max(step, 1.0)
        weights = _keys((np.arange(old)[None] + 0.5 - centre[:, None]) / wide, -0.5)
        return weights / weights.sum(1, keepdims=True)
    low = np.floor(centre - 0.5).astype(int)
    weights = np.zeros((new, old))
    for k in range(-1, 3):
        share = _keys(low + k - (centre - 0.5), -0.75)
        np.add.at(weights, (np.arange(new), np.clip(low + k, 0, old - 1)), share)
    return weights


def _keys(d: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981) at the distances ``d``."""
    d = np.abs(d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
