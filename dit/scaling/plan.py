"""From a total budget to isoFLOP runs: budgets x sizes x seeds, and learning-rate probes at each budget.

A budget is a cost C in exact training FLOPs. At each, models of several sizes around the expected
optimum are trained for as many steps as C pays for. Steps are whole, so a run's cost differs from C by
at most half a step; the exact cost is recorded and fitted. Every learning rate (and batch size) is first
tried at one size of each budget. The budget's other runs use the best one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dit.config import fingerprint
from dit.parallel.peak import datasheet
from dit.scaling.ladder import Size
from dit.types import UserError

STAGES = ("probe", "main", "held_out")


@dataclasses.dataclass(frozen=True)
class Machine:
    """The speed of runs: useful FLOP/s of all ``devices``, further seconds a step, seconds to start."""

    name: str
    flops: float
    devices: int = 1
    step_seconds: float = 0.0
    start_seconds: float = 0.0

    def seconds(self, flops: float, steps: int) -> float:
        """The wall time of a run."""
        return self.start_seconds + steps * self.step_seconds + flops / self.flops

    def budget(self, device_hours: float) -> float:
        """The FLOPs of ``device_hours``, if devices did nothing but matrix products."""
        return device_hours * 3600 * self.flops / self.devices


def on_chip(
    kind: str, utilisation: float, devices: int = 1, start_seconds: float = 60.0
) -> Machine:
    """A machine of chips with known peaks, at a measured or expected utilisation (such as 0.4).

    Raises UserError for an unknown chip: give ``Machine`` a measured rate instead.
    """
    peak = datasheet(kind)
    if peak is None:
        raise UserError(
            f"no data sheet for {kind!r}; give the measured FLOP/s: Machine({kind!r}, ...)"
        )
    if not (0 < utilisation <= 1 and devices >= 1):
        raise UserError(
            f"got utilisation={utilisation}, devices={devices}; expected a share of the peak and a "
            "positive number"
        )
    return Machine(kind, peak * utilisation * devices, devices, start_seconds=start_seconds)


@dataclasses.dataclass(frozen=True)
class Row:
    """One run. ``lr`` and ``batch`` are None where the probes of its budget decide.

    ``budget``: the requested C. ``flops``: the exact cost, None like ``steps`` where ``batch`` is None.
    """

    stage: str
    budget: float
    size: Size
    seed: int
    lr: float | None
    batch: int | None
    steps: int | None
    flops: int | None
    seconds: float

    @property
    def name(self) -> str:
        """A hash of the row, twelve hex digits."""
        asked = [self.stage, self.budget, self.size.kwargs, self.seed, self.lr, self.batch]
        return fingerprint({"row": asked})


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows in the order in which they can run, and their totals."""

    rows: tuple[Row, ...]
    budgets: tuple[float, ...]
    machine: Machine
    probed: tuple[Size, ...]  # the size of each budget's probes

    @property
    def flops(self) -> float:
        """The cost of all rows."""
        return float(sum(row.budget if row.flops is None else row.flops for row in self.rows))

    @property
    def seconds(self) -> float:
        """The predicted wall time if runs follow one another."""
        return sum(row.seconds for row in self.rows)


def steps_for(budget: float, step_flops: int) -> int:
    """The whole number of steps whose cost is nearest to the budget."""
    return max(1, round(budget / step_flops))


def check_run(
    size: Size, batch: int, budget: float, least_steps: int, unique: int | None, most_epochs: float
) -> tuple[int, int]:
    """``(steps, exact flops)`` of a run; UserError for too few steps or too many epochs."""
    step_flops = batch * size.costs.training
    steps = steps_for(budget, step_flops)
    what = (
        f"depth {size.depth}, width {size.width} at C = {budget:.3g}, batch {batch}: {steps} steps"
    )
    if steps < least_steps:
        raise UserError(
            f"{what}, fewer than {least_steps}; raise the budget, lower the batch size, leave out large "
            "sizes, or lower least_steps"
        )
    epochs = 0.0 if unique is None else steps * batch / unique
    if epochs > most_epochs:
        raise UserError(
            f"{what}, {epochs:.1f} epochs of {unique} examples, more than {most_epochs}: the law would "
            "be one of repeated data; lower the budget, leave out small sizes, or take more data"
        )
    return steps, steps * step_flops


def around(sizes: Sequence[Size], target: float, count: int) -> list[Size]:
    """``count`` neighbouring sizes, whose middle one is nearest to ``target`` in log."""
    if count > len(sizes):
        raise UserError(
            f"got a ladder of {len(sizes)} sizes; expected {count} or more, as many as a budget needs"
        )
    nearest = min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i].N / target)))
    start = min(max(nearest - count // 2, 0), len(sizes) - count)
    return list(sizes[start : start + count])


def expected_size(budget: float, sizes: Sequence[Size], ratio: float) -> float:
    """The N that costs the budget at ``ratio`` tokens a parameter, from the cost of the nearest size."""

    def excess(size: Size) -> float:
        samples = budget / size.costs.training
        return math.log(samples * size.costs.tokens / (ratio * size.N))

    nearest = min(sizes, key=lambda size: abs(excess(size)))
    return nearest.N * math.exp(excess(nearest) / 2)  # N D is fixed, so N^2 goes as the excess


def plan(
    sizes: Sequence[Size],
    machine: Machine,
    *,
    total: float | None = None,
    budgets: int | Sequence[float] = 3,
    spacing: float = math.sqrt(10),
    per_budget: int = 5,
    seeds: int = 2,
    lrs: Sequence[float] = (1e-3, 2e-3, 4e-3),
    batches: Sequence[int] = (64,),
    ratio: float = 20.0,
    held_out: float | None = 3.0,
    least_steps: int = 100,
    unique: int | None = None,
    most_epochs: float = 4.0,
) -> Plan:
    """The runs that a total budget of FLOPs (``machine.budget(device_hours)``) pays for.

    ``budgets``: their number, ``spacing`` apart (``total`` is then divided among them), or their costs.
    ``per_budget``: sizes at each, around ``ratio`` tokens a parameter. ``lrs``, ``batches``: tried at
    the middle size of each budget. ``held_out``: one more run, at this multiple of the largest budget.
    ``unique``: examples in the training data, None for a stream. Raises UserError for fewer than
    ``least_steps`` steps or more than ``most_epochs`` epochs in any run.
    """
    given = {"lrs": lrs, "batches": batches}
    if not isinstance(budgets, int):
        given["budgets"] = budgets
    for name, values in given.items():
        right = all(0 < value < math.inf for value in values)  # not so for NaN
        if not values or not right or len(set(values)) < len(values):
            raise UserError(
                f"got {name}={tuple(values)}; expected one positive number or more, all different"
            )
    counts = {"per_budget": per_budget, "seeds": seeds}
    if isinstance(budgets, int):
        counts["budgets"] = budgets
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"got {name}={count}; expected at least 1")
    for name, value in {"total": total, "held_out": held_out, "ratio": ratio}.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"got {name}={value}; expected a positive number")
    probes = len(lrs) * len(batches)
    each = probes + per_budget * seeds - 1  # the best probe is one of the main runs
    if isinstance(budgets, int):
        if total is None:
            raise UserError("give the total budget in FLOPs, or the budgets themselves")
        shares = [spacing ** -(budgets - 1 - i) for i in range(budgets)]
        largest = total / (each * sum(shares) + (held_out or 0.0))
        costs = tuple(largest * share for share in shares)
    else:
        costs = tuple(float(c) for c in sorted(budgets))
    rows, probed = [], []

    def add(stage, budget, size, seed, lr, batch):
        steps = flops = None
        for tried in batches if batch is None else [batch]:
            checked = check_run(size, tried, budget, least_steps, unique, most_epochs)
            if batch is not None or len(batches) == 1:
                batch, (steps, flops) = tried, checked
        longest = budget / (min(batches) * size.costs.training) if steps is None else steps
        seconds = machine.seconds(float(flops or budget), math.ceil(longest))
        rows.append(Row(stage, budget, size, seed, lr, batch, steps, flops, seconds))

    for budget in costs:
        chosen = around(sizes, expected_size(budget, sizes, ratio), per_budget)
        middle = chosen[len(chosen) // 2]
        probed.append(middle)
        for batch in batches:
            for lr in lrs:
                add("probe", budget, middle, 0, lr, batch)
        only = lrs[0] if len(lrs) == 1 else None
        for seed in range(seeds):
            for size in chosen:
                if (size, seed) != (middle, 0):
                    add("main", budget, size, seed, only, None)
    if held_out is not None:
        budget = held_out * costs[-1]
        nearest = around(sizes, expected_size(budget, sizes, ratio), 1)[0]
        add("held_out", budget, nearest, 0, lrs[0] if len(lrs) == 1 else None, None)
    planned = Plan(tuple(rows), costs, machine, tuple(probed))
    if total is not None and planned.flops > 1.01 * total:
        raise UserError(
            f"these runs cost {planned.flops:.4g} FLOPs, more than the total of {total:.4g}; lower the "
            "budgets, sizes, seeds or probes"
        )
    return planned


def describe(planned: Plan) -> str:
    """The plan as a readable table."""
    lines = [
        f"{len(planned.rows)} runs, {planned.flops:.4g} FLOPs, {planned.seconds / 3600:.3g} hours one "
        f"after the other on {planned.machine.name} ({planned.machine.flops:.3g} FLOP/s)",
        f"{'stage':8} {'C asked':>10} {'depth':>5} {'width':>5} {'N':>9} {'seed':>4} {'lr':>8} "
        f"{'batch':>5} {'steps':>7} {'exact FLOPs':>16} {'seconds':>8}",
    ]
    for row in planned.rows:
        lr, batch, steps, flops = (
            "probed" if v is None else v for v in (row.lr, row.batch, row.steps, row.flops)
        )
        lines.append(
            f"{row.stage:8} {row.budget:10.3g} {row.size.depth:5} {row.size.width:5} "
            f"{row.size.N:9} {row.seed:4} {lr:>8} {batch:>5} {steps:>7} {flops:>16} {row.seconds:8.0f}"
        )
    return "\n".join(lines)
