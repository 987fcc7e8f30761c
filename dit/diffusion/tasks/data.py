"""The data say what is given: a key ``known`` of each example, bool, ``f h w``."""

from __future__ import annotations

from dit.diffusion.tasks import Task


def build() -> Task:
    """Masks must be constant within a patch."""
    return Task(None)
