"""The first frames are given: the clip goes on from them."""

from __future__ import annotations

from dit.diffusion.tasks import Task, drawn, frames, spans
from dit.types import Count


def build(*, frames: Count | None = None) -> Task:
    """``frames``: how many frames of tokens are given; None: drawn, from one to all but one."""
    return leading(frames, back=False)


def leading(count: int | None, back: bool) -> Task:
    """So many frames at the beginning are given or, if ``back``, at the end."""

    def known(keys, grid):
        length = grid[0]
        given = drawn(keys, "frames", length - 1) if count is None else count
        at = spans(length - given, length, length, keys) if back else spans(0, given, length, keys)
        return frames(at, grid)

    return Task(known, least=2 if count is None else count + 1, whole=True)
