"""The first and the last frame are given: the clip leads from one to the other."""

from __future__ import annotations

from dit.diffusion.tasks import Task, frames, spans


def build() -> Task:
    """The first and the last frame of tokens are given; three or more are needed."""

    def known(keys, grid):
        return frames(~spans(1, grid[0] - 1, grid[0], keys), grid)

    return Task(known, least=3, whole=True)
