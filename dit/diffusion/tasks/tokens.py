"""Tokens here and there are given, each by a chance of its own."""

from __future__ import annotations

from dit import rng
from dit.diffusion.tasks import Task
from dit.types import Share


def build(*, share: Share = 0.5) -> Task:
    """``share``: the probability with which a token is given."""
    return Task(lambda keys, grid: rng.uniform(keys, grid) < share)
