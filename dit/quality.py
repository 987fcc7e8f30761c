"""The quality of what trained models draw, as figures of an ablation's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit.draw import Recipe, Sampler
from dit.evaluation.judge import Judge, judge_of


class Quality:
    """``quality(arm, experiment, trained) -> figures``: what ``scaling.ablate`` takes as ``measure``.

    Draws samples by every recipe and judges them. Figures are called ``accuracy NAME`` and ``frechet
    NAME`` after the recipe's name (which may be empty). The same seed of a recipe means the same first
    noise for all arms. ``weights``: ``params``, or the name of an average. What is compiled for an arm
    is kept, and so is the ``judge``, once there is one.
    """

    def __init__(self, recipes: Mapping[str, Recipe], weights: str = "params"):
        self.recipes, self.weights = recipes, weights
        self.judge: Judge | None = None
        self._samplers: dict[tuple[str, str], Sampler] = {}

    def __call__(self, arm: str, made: Any, trained: Any) -> dict[str, float]:
        """Figures of the samples that ``trained`` draws by each recipe."""
        self.judge = judge_of(made.source) if self.judge is None else self.judge
        params = trained.params if self.weights == "params" else trained.ema[self.weights]
        found = {}
        for name, recipe in self.recipes.items():
            if (arm, name) not in self._samplers:
                self._samplers[arm, name] = Sampler(made, recipe)
            drawn = self._samplers[arm, name](params)
            figures = self.judge(drawn.samples, drawn.labels)
            found |= {f"{figure} {name}".strip(): value for figure, value in figures.items()}
        return found
