"""The quality of a trained model's samples, as figures in the rows of an ablation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dit import rng
from dit.draw import Drawn, Recipe, Sampler
from dit.evaluation import adherence, gather
from dit.evaluation.clips import Frames
from dit.evaluation.judge import Judge, judge_of
from dit.parallel.frozen import shapes
from dit.rollouts import lasting
from dit.scaling.evaluate import check_weights
from dit.types import UserError

REAL = 200  # real clips, of each length, whose motion is measured


class Quality:
    """``quality(arm, experiment, trained) -> figures``: what ``scaling.ablate`` takes as ``measure``.

    Draws samples by every recipe and judges them. Figures are called ``accuracy NAME`` and ``frechet
    NAME`` after the recipe's name (which may be empty). A recipe with prompts and no labels has those of
    ``evaluation.adherence.score`` instead. With one seed in a recipe, all arms start from the same
    noise. ``weights``: ``params``, or the name of an average. Compiled samplers and the ``judge`` are
    kept from arm to arm; ``drawn`` has the latest samples of each ``(arm, NAME)``.
    """

    def __init__(self, recipes: Mapping[str, Recipe], weights: str = "params"):
        self.recipes, self.weights = recipes, weights
        self.judge: Judge | None = None
        self.drawn: dict[tuple[str, str], Drawn] = {}
        self._samplers: dict[tuple[str, str], Sampler] = {}

    def check(self, arm: str, experiment: Any) -> None:
        """Raise UserError where an arm's samples cannot be drawn or judged for some recipe."""
        if self.judge is None and not all(map(_prompted, self.recipes.values())):
            self.judge = judge_of(experiment.source)
        check_weights(self.weights, experiment)
        params = jax.eval_shape(experiment.init, rng.root(0))
        for name, recipe in self.recipes.items():
            if recipe.count < 2:
                raise UserError(f"recipe {name!r} draws one sample; expected two or more to judge")
            if recipe.guidance.startswith("autoguidance"):
                raise UserError(f"recipe {name!r}: there is no weaker model here for autoguidance")
            sampler = self._samplers[arm, name] = Sampler(experiment, recipe)
            if _prompted(recipe):
                adherence.asked(recipe.prompts)
            given = {"label": sampler.labels, **sampler.words, "id": np.arange(1)}
            batch = {k: v[:1] for k, v in given.items() if v is not None}
            jax.eval_shape(sampler.run, params, None, batch, shapes(experiment.sampled_with))

    def __call__(self, arm: str, experiment: Any, trained: Any) -> dict[str, float]:
        """Figures of the samples that ``trained`` draws by each recipe."""
        if any((arm, name) not in self._samplers for name in self.recipes):
            self.check(arm, experiment)
        params = trained.params if self.weights == "params" else trained.ema[self.weights]
        found = {}
        for name in self.recipes:
            drawn = self.drawn[arm, name] = self._samplers[arm, name](params)
            if _prompted(self.recipes[name]):
                figures = adherence.score(self.recipes[name].prompts, list(drawn.samples[:, 0]))
            elif drawn.labels is None:
                raise UserError("got a recipe without labels; the judge of images asks for labels")
            else:
                figures = self.judge(drawn.samples, drawn.labels)
            found |= {f"{figure} {name}".strip(): value for figure, value in figures.items()}
        return found


class Lasting:
    """A ``measure`` of clips as they go on: are they still what was asked for, and do they still move?

    ``rollouts``: of each arm, by the number of frames, how it draws clips of so many (a recipe's
    ``rollout``; None: all frames together). ``recipe`` says the rest, labels too. Of clips of F frames:
    ``right F`` and ``motion F``, the share of clips that show the class asked for in their last
    ``window`` frames (in the mean over these), and how far the object moves there from frame to frame,
    over the same of real clips; and ``right F/k``, the share at frame k, for the last of each window.
    ``drawn`` has the latest samples of each ``(arm, F)``. ``weights`` as of ``Quality``.
    """

    def __init__(
        self,
        recipe: Recipe,
        rollouts: Mapping[str, Mapping[int, str | None]],
        window: int,
        weights: str = "params",
    ):
        self.recipe, self.rollouts, self.window, self.weights = recipe, rollouts, window, weights
        self.judge: Frames | None = None
        self.drawn: dict[tuple[str, int], Drawn] = {}
        self._samplers: dict[tuple[str, int], Sampler] = {}
        self._real: dict[int, float] = {}

    def check(self, arm: str, experiment: Any) -> None:
        """Raise UserError where an arm's clips cannot be drawn or judged."""
        if not self.recipe.labels or self.window < 2 or arm not in self.rollouts:
            raise UserError(
                f"got {len(self.recipe.labels)} labels, a window of {self.window} frames, and rollouts "
                f"of {', '.join(self.rollouts)} for arm {arm!r}; expected labels, by which clips are "
                "judged, two frames or more, and rollouts of every arm"
            )
        check_weights(self.weights, experiment)
        if self.judge is None:
            self.judge = Frames.of(experiment.source)
        params = jax.eval_shape(experiment.init, rng.root(0))
        for frames, rollout in self.rollouts[arm].items():
            one = lasting(experiment, (frames, *experiment.shape[1:3]))
            sampler = Sampler(one, dataclasses.replace(self.recipe, rollout=rollout))
            self._samplers[arm, frames] = sampler
            batch = {"label": sampler.labels[:1], "id": np.arange(1)}
            jax.eval_shape(sampler.run, params, None, batch, shapes(experiment.sampled_with))
            if frames not in self._real:
                self._real[frames] = float(self._judged(*gather(one.source.held_out, REAL))[1])

    def __call__(self, arm: str, experiment: Any, trained: Any) -> dict[str, float]:
        """Figures of the clips that ``trained`` draws in each of the arm's lengths."""
        if any((arm, frames) not in self._samplers for frames in self.rollouts[arm]):
            self.check(arm, experiment)
        params = trained.params if self.weights == "params" else trained.ema[self.weights]
        found = {}
        for frames in self.rollouts[arm]:
            drawn = self.drawn[arm, frames] = self._samplers[arm, frames](params)
            right, moved = self._judged(drawn.samples, drawn.labels)
            found[f"right {frames}"] = float(right[:, -self.window :].mean())
            found[f"motion {frames}"] = float(moved) / self._real[frames]
            for k in range(self.window - 1, frames, self.window):
                found[f"right {frames}/{k}"] = float(right[:, k].mean())
        return found

    def _judged(self, clips: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.floating]:
        """Which frames are right, and the mean step between the last frames of a window."""
        right, step = self.judge(clips, labels)
        return right, step[:, 1 - self.window :].mean()


def _prompted(recipe: Recipe) -> bool:
    """Whether samples are judged by what their prompts ask for."""
    return bool(recipe.prompts) and not recipe.labels
