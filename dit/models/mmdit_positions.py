"""Where image and text tokens lie, in the families of MMDiT.

``sincos``: added to the image's tokens, nothing to the text's (SD3). Rotary angles: ``rope``: the text
lies at the origin (FLUX.1); ``sincos+rope``: both; ``rope_text``: a fourth axis counts the text's
tokens (FLUX.2); ``msrope``: the image is centred on the origin, the text goes on along the diagonal of
all axes (Qwen-Image).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.types import UserError

LAYOUTS = ("sincos", "rope", "sincos+rope", "rope_text", "msrope")
Place = Float[Array, "1 _ _"]


def axes_of(layout: str, head_dim: int) -> tuple[int, ...]:
    """Channels of a head for every axis: even numbers, what is left over goes to the first."""
    count = 4 if layout == "rope_text" else 3
    side = 2 * (head_dim // (2 * count))
    return (head_dim - (count - 1) * side, *(side for _ in range(count - 1)))


def check_axes(channels: tuple[int, ...], layout: str, head_dim: int) -> None:
    """Raise UserError unless ``channels`` are as many as the layout has, even, and make up a head."""
    example = axes_of(layout, head_dim)
    odd = any(a % 2 for a in channels)
    if len(channels) != len(example) or odd or sum(channels) != head_dim:
        raise UserError(
            f"got rope_axes={tuple(channels)} for positions {layout!r} and heads of {head_dim} "
            f"channels; expected {len(example)} even numbers with sum {head_dim}, as {example}"
        )


def cropped(position: Place, grid: tuple[int, int, int], table: tuple[int, int]) -> Place:
    """Positions as in the middle of a square table of ``table[0]`` rows at ``table[1]`` a unit (SD3).

    The rows are ``table[1] / table[0]`` apart: the table spans that of the images first trained on.
    Raises UserError for an image that is larger than the table.
    """
    most, base = table
    if max(grid[1:]) > most:
        raise UserError(
            f"got {grid[1]}x{grid[2]} patches; this model knows {most}x{most} positions"
        )
    corner = axes(position, 0, *((most - side) // 2 for side in grid[1:]))
    return (position + corner) * axes(position, 1, base / most, base / most)


def places(
    layout: str, position: Place, grid: tuple[int, int, int], length: int
) -> tuple[Place, Place]:
    """Of the image's tokens and of ``length`` of the text, for rotary angles.

    ``position``: ``(time, y, x)`` of the patches of ``grid``, counted from zero.
    """
    count = jnp.arange(length, dtype=position.dtype)[None, :, None]
    if layout == "rope_text":
        pad = ((0, 0), (0, 0))
        return jnp.pad(position, (*pad, (0, 1))), jnp.pad(count, (*pad, (3, 0)))
    if layout != "msrope":
        return position, jnp.zeros((1, length, 3), position.dtype)
    middle = axes(position, 0, *(side - side // 2 for side in grid[1:]))
    start = max(side // 2 for side in grid[1:])
    return position - middle, jnp.broadcast_to(start + count, (1, length, 3))


def axes(position: Place, *values: int | float) -> Place:
    """One value for each axis of all positions."""
    return jnp.asarray(values, position.dtype)[None, None]
