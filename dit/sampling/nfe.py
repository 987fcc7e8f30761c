"""The exact number of network evaluations of a sampling run, per sample."""

from __future__ import annotations

import numpy as np

from dit.diffusion.path import Path
from dit.sampling.guidance import Guidance
from dit.sampling.solver import Grid, Solver
from dit.types import UserError


def nfe(
    solver: Solver,
    steps: int,
    guidance: Guidance | None = None,
    *,
    path: Path | None = None,
    grid: Grid | None = None,
) -> int:
    """Network evaluations for each sample: the solver's, times two where guidance is on.

    ``path`` and ``grid`` are needed only by a rule that is on at some times and off at others.
    Raises UserError for an adaptive solver, whose count is in ``solve(...).evaluations``.
    """
    if solver.evaluations is None:
        raise UserError(
            "an adaptive solver does not know its evaluations beforehand: read them from "
            "solve(...).evaluations (times the evaluations of the guidance rule)"
        )
    if guidance is None:
        return solver.evaluations(steps)
    if isinstance(guidance.evaluations, int):
        return guidance.evaluations * solver.evaluations(steps)
    if path is None or grid is None:
        raise UserError("this guidance rule is off at some times: give nfe the path and the grid")
    return int(np.sum(guidance.evaluations(path, solver.times(path, grid))))
