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
    start: int = 0,
) -> int:
    """Network evaluations for each sample: the solver's, times two where guidance is on.

    ``path`` and ``grid`` are needed only by a rule that is on at some times and off at others.
    ``start``: the first of the ``steps`` that is taken, as in ``solve``. Raises UserError for an
    adaptive solver, whose count is in ``solve(...).evaluations``.
    """
    if solver.evaluations is None:
        raise UserError(
            "an adaptive solver does not know its evaluations beforehand: read them from "
            "solve(...).evaluations (times the evaluations of the guidance rule)"
        )
    if guidance is None:
        return solver.evaluations(steps - start)
    if isinstance(guidance.evaluations, int):
        return guidance.evaluations * solver.evaluations(steps - start)
    if path is None or grid is None:
        raise UserError("this guidance rule is off at some times: give nfe the path and the grid")
    each = np.asarray(guidance.evaluations(path, solver.times(path, grid, start)))
    return int(each.reshape(len(each), -1).max(1).sum())  # on where it is for any part


def check_countable(solver: Solver, guidance: Guidance) -> None:
    """Raise UserError where no count of network evaluations could be given, before or afterwards.

    An adaptive solver counts its calls as it goes, but not at which of them guidance was on.
    """
    if solver.evaluations is None and not isinstance(guidance.evaluations, int):
        raise UserError(
            "an adaptive solver does not go with guidance that is on at some times only (guidance "
            "'interval'): how often the network is called could not be told. Use another solver, or "
            "a rule that is on at all times, such as 'cfg'"
        )
