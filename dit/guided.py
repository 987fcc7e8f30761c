"""The denoiser that samples are drawn by: the network, what it is told, and the rule that guides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dit import models
from dit.diffusion.process import Denoiser, denoiser
from dit.experiment import Experiment
from dit.prompts import NEGATIVE, TOLD
from dit.recipe import Rules
from dit.sampling.denoisers import pair, paired
from dit.sampling.experts import switched
from dit.sampling.solver import Grid
from dit.types import ApplyFn, Cond, Params


@dataclasses.dataclass(frozen=True)
class Guided:
    """A batch of samples' network. ``weak``: parameters that autoguidance steers away from.

    ``cond``, ``negative``: what the network is told, and what guidance leads away from in place of the
    null condition. ``weak_cond``: what the weaker network is told. ``low``: the network that draws at
    times below the rules' boundary, where there is one.
    """

    experiment: Experiment
    rules: Rules
    params: Params
    weak: Params | None
    cond: Cond
    negative: Cond | None
    weak_cond: Cond | None
    low: Guided | None = None

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        rules: Rules,
        params: Params,
        weak: Params | None,
        batch: Mapping[str, Any],
        text: Params,
        low: Params | None = None,
    ) -> Guided:
        """For a ``batch`` of conditions, as ``Sampler.run`` has it. ``text``: a frozen encoder's.

        ``low``: parameters of the network of times below a boundary.
        """
        model = experiment.model
        asked = Cond.of(experiment.tell(text, batch))
        cond, negative, weak_cond = models.told(model, params, asked), None, None
        if rules.autoguided:
            weak_cond = models.told(model, weak, asked)
        elif rules.guided and NEGATIVE[0] in batch:
            other = {to: batch[name] for to, name in zip(TOLD, NEGATIVE, strict=True)}
            other = Cond.of(experiment.tell(text, {**batch, **other}))
            negative = models.told(model, params, other)
        below = None if low is None else cls.of(experiment, rules.low, low, None, batch, text)
        return cls(experiment, rules, params, weak, cond, negative, weak_cond, below)

    def denoiser(self, grid: Grid, apply_fn: ApplyFn | None = None) -> Denoiser:
        """By ``apply_fn`` in place of the model's own, if there is one."""
        own = self._alone(grid, apply_fn)
        if self.low is None:
            return own
        return switched(own, self.low.denoiser(grid, apply_fn), self.rules.boundary)

    def _alone(self, grid: Grid, apply_fn: ApplyFn | None) -> Denoiser:
        """Of this network, whatever the time is."""
        process, guidance = self.experiment.process, self.rules.guidance
        apply_fn = apply_fn or self.experiment.apply_fn
        plain = denoiser(process, apply_fn, self.params, self.cond)
        if self.rules.autoguided:
            weaker = denoiser(process, apply_fn, self.weak, self.weak_cond)
            return guidance(pair(plain, weaker), process.path, grid)
        if not self.rules.guided:
            return plain
        both = paired(process, apply_fn, self.params, self.cond, self.negative)
        return guidance(both, process.path, grid)
