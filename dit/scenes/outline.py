"""Outlines of shapes as signed distances, from which edges one pixel soft are drawn."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Distance = Float[np.ndarray, "*n h w"]


def distance(
    shape: str,
    dy: Float[np.ndarray, "*n h 1"],
    dx: Float[np.ndarray, "*n 1 w"],
    radius: float | Float[np.ndarray, "*n 1 1"],
) -> Distance:
    """The approximate signed distance to the shape of points that are ``(dy, dx)`` from its middle.

    In the units of ``radius``, which is about half the shape's height; negative inside; y points down.
    """
    y, x = np.abs(dy), np.abs(dx)
    if shape == "square":
        return np.maximum(y, x) - 0.85 * radius
    if shape == "diamond":
        return 0.75 * (y + x - 1.1 * radius)
    if shape == "cross":
        return np.maximum(np.minimum(y, x) - 0.35 * radius, np.maximum(y, x) - radius)
    if shape == "triangle":  # isosceles: of base and height 1.9 radius
        side = (1.9 * x - 0.95 * (dy + radius)) / np.hypot(1.9, 0.95)
        return np.maximum(side, dy - 0.9 * radius)
    if shape == "star":
        return _star(dy - 0.08 * radius, x, 1.1 * radius)
    r = np.sqrt(y * y + x * x)
    if shape == "ring":
        return np.abs(r - 0.7 * radius) - 0.3 * radius
    if shape in ("disc", "circle"):
        return r - radius
    raise ValueError(f"got the shape {shape!r}, which has no outline")


def _star(dy: np.ndarray, x: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """Five points, the first one up; the inner corners lie at 0.45 of the radius."""
    half = np.pi / 5  # the angle between a point and the next inner corner
    up, right = np.broadcast_arrays(-dy, x)
    for _ in range(2):  # what is nearer to another point is reflected to where the first one is
        beyond = 2 * np.maximum(right * np.cos(half) - up * np.sin(half), 0)
        right, up = np.abs(right - beyond * np.cos(half)), up + beyond * np.sin(half)
    corner = 0.45 * np.array([np.cos(half), np.sin(half)])
    edge = corner - [1.0, 0.0]  # from the point to the corner, over the radius
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (up - radius) * normal[0] + right * normal[1]
