"""How a config says that samples are drawn."""

from __future__ import annotations

import dataclasses

from dit.types import Count, Scale, Seed, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How samples are drawn. ``solver``, ``grid``, ``guidance``, ``rollout`` as on the command line.

    In training: a grid of ``num`` (0: none), cycling through the classes, or of a model that reads text
    through the ``prompts`` (none: captions of held-out data), every ``every`` steps (0: never) and at
    the end; of clips of so many ``frames`` (None: as many as the data have).
    """

    every: Whole = 1000
    num: Whole = 50
    solver: str = "heun"
    grid: str = "uniform"
    steps: Count = 50
    guidance: str | Scale = 1.0
    seed: Seed = 0
    batch: Count = 250
    prompts: tuple[str, ...] = ()
    rollout: str | None = None
    frames: Count | None = None
