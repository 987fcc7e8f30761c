"""Scores while a model trains: when they are due, and their rows of the log.

What scores samples is given to the loop (``Scorer``); a row is ``{"step": ..., "scores/fid": ...,
"scores/fid_error": ...}``. A step is saved before it is scored, so a run that is killed meanwhile finds,
when it goes on, that the log lacks the scores of its step, and makes them then.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

from dit import storage
from dit.parallel import multihost
from dit.training.logging import MetricsLog, Progress, read_metrics
from dit.training.state import TrainState
from dit.types import Count, Whole

PREFIX = "scores/"  # before the name of a score


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """The scores ``names`` of ``num`` samples every ``every`` steps (0: never) and at the end.

    As ``dit.evaluate --num --features --scores --reference`` measures them, of samples that are drawn as
    the section ``samples`` says. A step that is scored is saved first.
    """

    every: Whole = 0
    num: Count = 2000
    features: str | tuple[str, ...] = ()
    names: str | tuple[str, ...] = ("fd", "kd")
    reference: str = "train"


@runtime_checkable
class Scorer(Protocol):
    """What scores samples: ``prepare()`` before the first step, and the figures of a step's state."""

    def prepare(self) -> None: ...

    def __call__(self, state: TrainState, step: int) -> dict[str, float]: ...


def is_due(experiment: Any, scorer: Scorer | None, step: int) -> bool:
    """Whether the samples of ``step`` are to be scored."""
    if scorer is None:
        return False
    return step % experiment.settings("scores").every == 0 or step == experiment.config.steps


def is_missing(workdir: storage.Place, step: int) -> bool:
    """Whether the log, which process 0 reads for all, has no scores of ``step``."""

    def scored() -> bool:
        rows = [row for row in read_metrics(workdir) if row["step"] == step]
        return any(name.startswith(PREFIX) for row in rows for name in row)

    return bool(multihost.who(multihost.is_main() and not scored()))


def score(
    scorer: Scorer, state: TrainState, step: int, metrics_log: MetricsLog | None, bar: Progress
) -> None:
    """Score the samples of ``step``, on all processes, and log what comes of it."""
    figures = {f"{PREFIX}{name}": value for name, value in scorer(state, step).items()}
    if metrics_log is not None:
        metrics_log.write({"step": step, **figures})
        metrics_log.flush()
        bar.say(f"step {step}: {told(figures)}")


def told(figures: dict[str, float]) -> str:
    """``scores/fid 12.3 +- 0.4, ...``: each figure with its standard error."""
    errors = {name: figures.get(f"{name}_error") for name in figures}
    return ", ".join(
        f"{name} {figures[name]:.4g} +- {error:.2g}"
        for name, error in errors.items()
        if error is not None
    )
