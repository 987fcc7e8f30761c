"""The train steps for examples of several shapes, one program each, and their mean time.

With a single shape, or all of them packed into rows, there is one program. A run fits if the step of
its largest examples does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dit.experiment import Experiment, build
from dit.parallel.topology import Topology
from dit.preflight import programs
from dit.preflight.report import Report


def train_steps(
    experiment: Experiment, where: Topology, first: Report | None = None
) -> list[Report]:
    """The report on the step of each shape, the largest first.

    That is ``first``, if it has been compiled already.
    """
    if len(experiment.shapes) == 1 or experiment.packed:
        return [first or programs.train_step(experiment, where)]
    reports, buckets = [], {}  # of each shape
    for i in experiment.used:
        buckets.setdefault(experiment.shapes[i], []).append(i)
    for _, alike in sorted(buckets.items(), key=lambda item: -math.prod(item[0])):
        i, share = alike[0], sum(experiment.shares[i] for i in alike)
        frames, height, width, _ = experiment.source.shapes[i]
        what = f"train step of {frames}x{height}x{width}, {share:.1%} of all"
        found = first if first and not reports else programs.train_step(experiment.bucket(i), where)
        reports.append(dataclasses.replace(found, what=what, share=share))
    return reports


def mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first of several reports as JSON, with the mean time of all steps, by their shares."""
    times = [row["step_seconds"] for row in rows]
    if None in times:
        return {**rows[0], "step_seconds": None}
    return {**rows[0], "step_seconds": sum(row["share"] * row["step_seconds"] for row in rows)}


def averaged(
    config: ConfigDict | Mapping[str, Any], where: Topology, first: Report
) -> dict[str, Any]:
    """``first``, on the step of the largest examples, as JSON with the mean time of the steps of all.

    The others are compiled for it only if ``first`` fits.
    """
    if not first.fits:
        return first.as_json()
    return mean([found.as_json() for found in train_steps(build(config), where, first)])


def largest(config: ConfigDict | Mapping[str, Any]) -> Experiment:
    """The experiment of a config on the largest of its examples, or on all if they are packed."""
    experiment = build(config)
    whole = len(experiment.shapes) == 1 or experiment.packed
    return experiment if whole else experiment.bucket(experiment.largest)
