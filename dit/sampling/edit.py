"""Editing with an unchanged sampler: image-to-image (SDEdit, Meng et al. 2021) and inpainting.

What is known is either noised with the rest (``inpaint``, for every model) or given clean (``reveal``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dit.diffusion.path import Path
from dit.diffusion.process import Denoiser
from dit.diffusion.tasks import of_latents
from dit.sampling.denoisers import map_x0
from dit.sampling.sample import initial_eps
from dit.sampling.solver import Grid
from dit.types import Key, UserError, Video, repeat_patches


def image_to_image(
    keys: Key, path: Path, grid: Grid, x_0: Float[Array, "b ..."], strength: float
) -> tuple[Float[Array, "b ..."], int]:
    """``(x_t, start)``: ``x_0`` noised to where the last ``strength`` of the grid's steps begins.

    Give both to ``sample``, with the same grid. ``strength`` 1 takes every step, from noise (where
    alpha(t_max) = 0, from nothing else); a small one changes the image little. ``keys`` are
    per-sample keys, and the noise is that of ``initial_noise``. Raises UserError outside (0, 1].
    """
    start = first_step(grid.shape[0] - 1, strength)
    eps = initial_eps(keys, x_0.shape[1:])
    x_t = path.alpha(grid[start]) * x_0 + path.sigma(grid[start]) * eps
    return x_t.astype(x_0.dtype), start


def first_step(steps: int, strength: float) -> int:
    """The step at which the last ``strength`` of ``steps`` begins; UserError outside (0, 1]."""
    if not 0 < strength <= 1:
        raise UserError(f"got strength={strength}; expected above 0 (no change) and at most 1")
    return steps - max(1, math.floor(strength * steps + 0.5))


def reveal(
    grid: Grid, x_t: Float[Array, "b f h w c"], known: Video, mask: Bool[Array, "b f ..."]
) -> tuple[Float[Array, "nodes b f ..."], Video]:
    """A grid and samples in which ``known`` is clean, at t = 0 from the start, where ``mask`` is true.

    For a model that was trained with clean frames (a ``mask`` of ``b f``) or tokens (``b f h w``,
    constant within their patches, as ``whole_patches`` makes it) beside noisy ones. Give both to
    ``sample``, and the grid to the guidance rule too. What is known comes back bit for bit.
    """
    times = grid.reshape(grid.shape + (1,) * (mask.ndim + 1 - grid.ndim))
    each = mask.reshape(mask.shape + (1,) * (x_t.ndim - mask.ndim))
    x_t = jnp.where(each, known.astype(x_t.dtype), x_t)
    return jnp.where(mask[None], 0, times), x_t


def whole_patches(
    mask: Bool[Array, "b f h w c"], patch: tuple[int, int, int]
) -> Bool[Array, "b f h w"]:
    """True in the patches that ``mask`` covers completely."""
    sizes = zip(mask.shape[1:4], patch, strict=True)
    sides = [side for size, p in sizes for side in (size // p, p)]
    whole = mask.reshape(len(mask), *sides, -1).all((2, 4, 6, 7))  # b F pt H ph W pw c
    return repeat_patches(whole, patch)


def coarse(
    mask: Bool[Array, "b f h w c"], shape: Sequence[int], frames: Sequence[int]
) -> Bool[Array, "b f2 h2 w2 d"]:
    """A mask of data as one of their latents of ``shape``: true where all of a latent's data are.

    ``frames``: how many frames of the data each frame of latents stands for (``Codec.frames_of``).
    """
    if mask.shape[1:] == tuple(shape):
        return mask
    return jnp.broadcast_to(of_latents(mask.all(-1), shape, frames), (len(mask), *shape))


def inpaint(denoise: Callable, known: Float[Array, "b ..."], mask: Bool[Array, "..."]) -> Denoiser:
    """The denoiser that says ``known`` where ``mask`` is true, and what ``denoise`` says elsewhere.

    Under it the known region follows the exact path from its noise to ``known``, and every solver,
    as it lands on the estimate, returns it exactly. Apply it last, around guidance. ``mask`` must
    broadcast to ``known``, with as many axes. Raises UserError if it does not.
    """
    same = mask.ndim == known.ndim and all(
        m in (1, k) for m, k in zip(mask.shape, known.shape, strict=True)
    )
    if not same:
        raise UserError(
            f"got a mask of shape {mask.shape} for data of shape {known.shape}; expected as many "
            "axes, each of the same length or 1"
        )
    return map_x0(denoise, lambda x_0, x, t: jnp.where(mask, known.astype(x_0.dtype), x_0))
