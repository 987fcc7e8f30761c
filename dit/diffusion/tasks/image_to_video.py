"""The first frame is given: image to video."""

from __future__ import annotations

from dit.diffusion.tasks import Task
from dit.diffusion.tasks.extend import leading


def build() -> Task:
    """The first frame of tokens is given."""
    return leading(1, back=False)
