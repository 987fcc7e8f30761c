"""The last frame is given: the clip leads to it."""

from __future__ import annotations

from dit.diffusion.tasks import Task
from dit.diffusion.tasks.extend import leading


def build() -> Task:
    """The last frame of tokens is given."""
    return leading(1, back=True)
