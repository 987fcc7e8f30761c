"""All is given but a box in space and time."""

from __future__ import annotations

from dit.diffusion.tasks import Task, drawn, spans


def build() -> Task:
    """The box is drawn: along each axis its length, from one token to all, and then its place."""

    def known(keys, grid):
        sides = []
        for name, length in zip(("time", "y", "x"), grid, strict=True):
            size = drawn(keys, f"{name} length", length)
            first = drawn(keys, f"{name} place", length - size + 1) - 1
            sides.append(spans(first, first + size, length, keys))
        t, y, x = sides
        return ~(t[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :])

    return Task(known, tokens=2)
