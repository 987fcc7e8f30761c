"""Run a plan: train each row in the normal loop, evaluate it on the frozen set, record a line.

A row with a line is not run again, and a killed run resumes from its checkpoint, so the same command can
be repeated until everything is done. Each run has a directory, ``runs/<row>``. Its checkpoints are
deleted once its line is written; the losses of every evaluation draw stay (``losses.npz``). A run that
fails by itself (``failure``) gets a line with the error, and may be retried.
"""

from __future__ import annotations

import json
import math
import pathlib
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import dit
from dit import config as configs
from dit.scaling.evaluate import (
    EvaluationSet,
    Evaluator,
    check_weights,
    evaluate_all,
    freeze,
    summaries,
)
from dit.scaling.failure import OWN, failed
from dit.scaling.fit import tuning
from dit.scaling.plan import Plan, Row, steps_for
from dit.scaling.plan_file import load_plan
from dit.scaling.registry import Registry
from dit.training.loop import train
from dit.training.optimizer import build_schedule
from dit.training.program import program
from dit.training.workdir import plain
from dit.types import OutsideError, UserError

Make = Callable[[Mapping[str, Any]], Any]  # a config to an experiment


def row_config(base: Mapping[str, Any], row: Row, lr: float, batch: int) -> dict[str, Any]:
    """The config of a row: the base with its size, rate, batch, seed and steps, and no samples."""
    steps = steps_for(row.budget, batch * row.size.costs.training)
    sections = {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain(base).items()}
    model = {k: v for k, v in sections["model"].items() if k != "size"}
    return {
        **sections,
        "seed": row.seed,
        "steps": steps,
        "batch_size": batch,
        "model": {**model, **row.size.kwargs},
        "optimizer": {**sections.get("optimizer", {}), "lr": lr},
        "samples": {**sections.get("samples", {}), "every": 0, "num": 0},
        "checkpoint": {"every": max(1, math.ceil(steps / 4)), "keep": 1},
        "log": {"every": max(1, steps // 20)},
    }


def check_schedules(plan: Plan, base: Mapping[str, Any]) -> None:
    """Raise UserError if a row's schedule does not fit its number of steps."""
    batches = sorted({row.batch for row in plan.rows if row.batch is not None})
    for row in plan.rows:
        for batch in batches if row.batch is None else [row.batch]:
            config = row_config(base, row, 1.0 if row.lr is None else row.lr, batch)
            lr, steps = config["optimizer"]["lr"], config["steps"]
            try:
                build_schedule(config["schedule"], lr=lr, steps=steps)
            except UserError as error:
                raise UserError(
                    f"{row.stage} run at C = {row.budget:.3g}, {row.size.kwargs}: {error}"
                ) from error


def setting(plan: Plan, row: Row, rows: Mapping[str, dict], weights: str) -> tuple[float, int]:
    """``(lr, batch)`` of a row: its own, or the best of the probes of its budget.

    Beyond the largest budget, the rate follows the power law through the best rates, if there is one.
    Raises OutsideError while probes are missing, and UserError if all of them failed.
    """
    if row.lr is not None and row.batch is not None:
        return row.lr, row.batch
    probes = [r for r in plan.rows if r.stage == "probe"]
    done = [rows[r.name] for r in probes if r.name in rows]
    budget = row.budget if row.stage == "main" else max(plan.budgets)
    wanted = [r for r in probes if r.budget == budget]
    if any(r.name not in rows for r in (probes if row.stage == "held_out" else wanted)):
        raise OutsideError(f"row {row.name} needs the probes of its budget; run those rows first")
    here = [d for d in done if d["budget"] == budget and d["status"] == "done"]
    if not here:
        raise UserError(f"all probes at C = {budget:.3g} failed; try smaller rates")
    best = min(here, key=lambda d: d["losses"][weights]["loss"])
    lr, batch = best["lr"], best["batch"]
    if row.stage == "held_out":
        same = [d for d in done if d["status"] == "done" and d["batch"] == batch]
        columns = [[d[k] for d in same] for k in ("C", "lr")]
        law = tuning(*columns, [d["losses"][weights]["loss"] for d in same]).law
        if law is not None:
            lr = float(np.clip(law(row.budget), lr / 2, lr * 2))
    return (lr if row.lr is None else row.lr), (batch if row.batch is None else row.batch)


def sweep(
    root: str | pathlib.Path,
    make: Make,
    *,
    only: str | None = None,
    retry: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Run what is left of the plan in ``root/plan.json``; return whether it is now complete.

    ``make`` builds an experiment from a config. ``only``: a single row, by name, for one job per row.
    ``retry``: also run failed rows again, from the start. A signal saves the current run and returns.
    Runs that differ only in their seed share one compiled program.
    """
    root = pathlib.Path(root)
    plan, base, options = load_plan(root / "plan.json")
    registry, frozen, weights = Registry(root / "registry.jsonl"), None, options["weights"]
    kept = Kept()
    todo = [row for row in plan.rows if only in (None, row.name)]
    if not todo:
        raise UserError(f"no row {only!r} in {root / 'plan.json'}")
    for i, row in enumerate(todo):
        rows = registry.latest()
        again = row.name in rows and rows[row.name]["status"] == "failed"
        if row.name in rows and not (retry and again):
            continue
        workdir = root / "runs" / row.name
        if again:  # its rate may have changed
            shutil.rmtree(workdir, ignore_errors=True)
        lr, batch = row.lr, row.batch
        try:
            lr, batch = setting(plan, row, rows, weights)
            experiment = make(row_config(base, row, lr, batch))
        except OWN as error:
            line = planned(row, lr, batch) | failed(error)
        else:
            if frozen is None:
                check_weights(weights, experiment)
                frozen = freeze(experiment.source.held_out, **options["evaluation"])
            line = one_run(experiment, row, workdir, frozen, kept)
        if line is None:
            say(f"stopped in row {row.name}; the same command goes on")
            return False
        registry.append(line)
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
        shown = line["losses"][weights]["loss"] if line["status"] == "done" else line["error"]
        rate = "none" if line["lr"] is None else f"{line['lr']:.3g}"
        say(
            f"[{i + 1}/{len(todo)}] {row.stage} C {row.budget:.3g} N {row.size.N} lr {rate} "
            f"seed {row.seed}: {shown}"
        )
    return True


def planned(row: Row, lr: float | None, batch: int | None) -> dict[str, Any]:
    """The part of a line that is known before the run begins."""
    costs = row.size.costs
    return {
        "row": row.name,
        "stage": row.stage,
        "budget": row.budget,
        "N": row.size.N,
        **row.size.kwargs,
        "parameters": costs.parameters,
        "per_token": costs.per_token,
        "tokens": costs.tokens,
        "lr": lr,
        "batch": batch,
        "seed": row.seed,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }


class Kept:
    """Compiled programs of the latest runs, by the part of the config that each depends on."""

    def __init__(self, limit: int = 32):
        self._limit, self._found = limit, {}

    def values(self) -> tuple[Any, ...]:
        """All kept values, the latest last."""
        return tuple(self._found.values())

    def get(self, what: str, experiment: Any, free: Sequence[str], make: Callable[[], Any]) -> Any:
        """What ``make`` returned for this config, or for one that differs from it in ``free`` only."""
        config = {k: v for k, v in plain(experiment.config).items() if k not in free}
        key = configs.fingerprint({"what": what, "data": experiment.source.fingerprint, **config})
        found = self._found.pop(key) if key in self._found else make()
        self._found[key] = found  # the latest comes last
        while len(self._found) > self._limit:
            self._found.pop(next(iter(self._found)))
        return found


FREE = ("seed", "samples", "scores", "checkpoint")  # keys on which no program of training depends
NOT_JUDGED = (*FREE, "steps", "batch_size", "optimizer", "schedule", "ema", "loader", "log")


def one_run(
    experiment: Any, row: Row, workdir: pathlib.Path, frozen: EvaluationSet, kept: Kept
) -> dict[str, Any] | None:
    """Train and evaluate one row; return its line, even if it failed, or None after a signal."""
    config = plain(experiment.config)
    images = config["steps"] * config["batch_size"]
    unique = None if experiment.source.streaming else len(experiment.source.train)
    free = ("log", "checkpoint", "samples", "scores")
    line = planned(row, config["optimizer"]["lr"], config["batch_size"]) | {
        "config": configs.fingerprint({k: v for k, v in config.items() if k not in free}),
        "steps": config["steps"],
        "C": images * row.size.costs.training,
        "images": images,
        "unique_images": images if unique is None else min(images, unique),
        "data": experiment.source.fingerprint,
        "evaluation_set": frozen.hash,
    }
    start = time.perf_counter()
    try:
        batches = experiment.batches()
        compiled = kept.get("train", experiment, FREE, lambda: program(experiment, batches))
        outcome = train(experiment, workdir, batches=batches, compiled=compiled, progress=False)
        if outcome.stopped:
            return None
        seconds = time.perf_counter() - start
        found = evaluated(experiment, outcome.state, frozen, kept)
    except OWN as error:
        return line | failed(error) | {"seconds": time.perf_counter() - start}
    np.savez_compressed(
        workdir / "losses.npz",
        t=next(iter(found.values())).t,
        example=next(iter(found.values())).example,
        **{name: losses.loss for name, losses in found.items()},
    )
    losses = summaries(found)
    if not all(math.isfinite(x["loss"]) for x in losses.values()):
        return line | {"status": "failed", "error": "the loss is not finite", "seconds": seconds}
    return line | {"status": "done", "losses": losses, "seconds": seconds}


def evaluated(experiment: Any, state: Any, frozen: EvaluationSet, kept: Kept) -> dict[str, Any]:
    """The losses of all evaluation draws, for each set of weights."""

    def judge() -> Evaluator:
        return Evaluator(
            frozen,
            apply_fn=experiment.apply_fn,
            process=experiment.process,
            objective=objective_of(experiment),
            encode=experiment.codec.encode,
            tell=experiment.tell,
            show=experiment.show,
            beside=experiment.frozen,
        )

    return evaluate_all(kept.get("evaluate", experiment, NOT_JUDGED, judge), state)


def objective_of(experiment: Any) -> dict[str, Any]:
    """The objective of an experiment with its times and weight built, as ``Evaluator`` takes it."""
    config = experiment.config.to_dict()
    times, weight = (
        configs.resolve(room, **config[section])
        for room, section in (("diffusion.times", "times"), ("diffusion.weights", "weight"))
    )
    patch = experiment.model.cell()
    return {**config["objective"], "times": times, "weight": weight, "patch": patch}


def versions() -> dict[str, str]:
    """The versions of the software that computed the numbers."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("jax", "flax", "optax", "numpy")}
    return {"dit": dit.__version__, "python": platform.python_version(), **packages}


def read_registry(root: str | pathlib.Path) -> list[dict[str, Any]]:
    """The latest line of every row of a sweep; UserError if there are none."""
    file = pathlib.Path(root) / "registry.jsonl"
    rows = list(Registry(file).latest().values())
    if not rows:
        raise UserError(f"no runs in {file}; run the sweep first")
    return json.loads(json.dumps(rows))
