"""The last frames are given: what came before them is to be drawn."""

from __future__ import annotations

from dit.diffusion.tasks import Task
from dit.diffusion.tasks.extend import leading
from dit.types import Count


def build(*, frames: Count | None = None) -> Task:
    """``frames``: how many frames of tokens are given; None: drawn, from one to all but one."""
    return leading(frames, back=True)
