"""A run that fails leaves a row with its error; what would stop any run stops the sweep."""

import errno
import functools
import json
import os
import types

import jax
import numpy as np
import pytest

from dit.experiment import build, load_config
from dit.scaling import report, run
from dit.scaling.evaluate import Losses
from dit.scaling.failure import LONGEST, failed
from dit.scaling.plan import Machine, plan
from dit.scaling.plan_file import save_plan
from dit.scaling.surface import Surface
from dit.training.loop import DivergedError
from dit.training.workdir import lock, plain
from dit.types import OutsideError, UserError

TRUTH = Surface(0.2, 3.0, 6.0, 0.3, 0.35)
OPTIONS = {"evaluation": {"examples": 4, "draws": 8, "seed": 0}, "weights": "params"}
OWN = {
    "diverged": DivergedError("the loss of step 3 is not finite"),
    "its config": UserError("got depth=0; expected 1 or more"),
    "out of memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n" + 900 * "x "),
    "no memory here": MemoryError(),
    "by zero": ZeroDivisionError("float division by zero"),
}
OUTSIDE = {
    "Ctrl-C": KeyboardInterrupt(),
    "full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "not written": OutsideError("a checkpoint could not be written"),
    "a mistake": AttributeError("'int' object has no attribute 'shape'"),
}


@functools.cache
def built(config):
    return build(json.loads(config))


def make(config):
    """The experiment of a row, built once for all tests."""
    return built(json.dumps(config))


@pytest.fixture(scope="module")
def made_plan(sizes):
    budgets = (2e11, 6e11, 2e12)
    return plan(
        sizes, Machine("cpu", 1e10), budgets=budgets, per_budget=5, ratio=15.0, lrs=(1e-3, 2e-3)
    )


@pytest.fixture
def sweep(tmp_path, made_plan, monkeypatch):
    """``sweep(failing, **options)``: the real one, but training costs nothing or raises.

    ``failing``: by row name, what its training raises. All rows trained, in order, in ``sweep.trained``.
    """
    base = plain(load_config("configs/shapes.py"))
    save_plan(tmp_path / "plan.json", made_plan, base, OPTIONS)

    def swept(failing, make=make, **options):
        def train(experiment, workdir, *, batches, **options):
            batches.close()
            swept.trained.append(workdir.name)
            (workdir / "checkpoints").mkdir(parents=True)
            (workdir / "config.json").write_text("{}")
            if workdir.name in failing:
                raise failing[workdir.name]
            return types.SimpleNamespace(state=None, stopped=None)

        monkeypatch.setattr(run, "train", train)
        monkeypatch.setattr(run, "program", lambda *args: None)
        return run.sweep(tmp_path, make, say=said.append, **options)

    def evaluated(experiment, state, frozen, kept):
        images = experiment.config.steps * experiment.config.batch_size
        N = next(r.size.N for r in made_plan.rows if r.name == swept.trained[-1])
        ones = np.ones(8)
        loss = (float(TRUTH(N, images)) + (experiment.config.optimizer.lr != 2e-3)) * ones
        return {"params": Losses(loss, np.linspace(0, 1, 8), np.arange(8) % 4, frozen.hash)}

    monkeypatch.setattr(run, "evaluated", evaluated)
    said = swept.said = []
    swept.trained, swept.root = [], tmp_path
    return swept


def names(made_plan, stage):
    return [row.name for row in made_plan.rows if row.stage == stage]


def status(root):
    return {row["row"]: row["status"] for row in run.read_registry(root)}


@pytest.mark.slow
def test_failures_of_all_kinds_stay_as_rows_and_the_sweep_goes_on(sweep, made_plan):
    main = names(made_plan, "main")
    failing = dict(zip(main[:5], OWN.values(), strict=True))
    assert sweep(failing)
    assert sweep.trained == [row.name for row in made_plan.rows]
    rows = {r["row"]: r for r in run.read_registry(sweep.root)}
    assert {name for name, r in rows.items() if r["status"] == "failed"} == set(failing)
    assert rows[main[0]]["error"] == "the loss of step 3 is not finite"
    assert rows[main[2]]["error"].startswith("JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory x")
    assert len(rows[main[2]]["error"]) == LONGEST
    assert rows[main[3]]["error"] == "MemoryError: MemoryError"
    assert all(rows[name]["steps"] > 0 and rows[name]["seconds"] >= 0 for name in failing)
    found = report.write_report(run.read_registry(sweep.root), sweep.root / "report")
    assert found.surface.alpha == pytest.approx(TRUTH.alpha, rel=0.05)
    text = (sweep.root / "report/report.md").read_text()
    assert f"{len(rows) - 5} runs finished, 5 failed" in text
    assert text.count("| main |") == 5
    assert "RESOURCE_EXHAUSTED" in (sweep.root / "report/runs.csv").read_text()


def test_failed_rows_are_run_again_only_when_asked_and_from_their_start(sweep, made_plan):
    main = names(made_plan, "main")
    sweep({main[1]: OWN["out of memory"]})
    sweep({})
    assert sweep.trained.count(main[1]) == 1
    (sweep.root / "runs" / main[1] / "trace").touch()
    assert sweep({}, retry=True)
    assert sweep.trained.count(main[1]) == 2
    assert len(sweep.trained) == len(made_plan.rows) + 1
    assert not (sweep.root / "runs" / main[1] / "trace").exists()
    assert set(status(sweep.root).values()) == {"done"}


@pytest.mark.parametrize("what", OUTSIDE)
def test_what_would_stop_any_run_stops_the_sweep(sweep, made_plan, what):
    main = names(made_plan, "main")
    with pytest.raises(type(OUTSIDE[what])):
        sweep({main[1]: OUTSIDE[what]})
    assert sweep.trained[-1] == main[1]
    assert main[1] not in status(sweep.root)
    (sweep.root / "runs" / main[1] / "checkpoints").rmdir()
    assert sweep({})
    assert set(status(sweep.root).values()) == {"done"}


def test_a_signal_stops_the_sweep_without_a_row(sweep, made_plan, monkeypatch):
    first = made_plan.rows[0].name
    sweep({}, only=first)

    def stopped(experiment, workdir, *, batches, **options):
        batches.close()
        return types.SimpleNamespace(state=None, stopped="SIGTERM")

    monkeypatch.setattr(run, "train", stopped)
    assert not run.sweep(sweep.root, make, say=lambda text: None)
    assert list(status(sweep.root)) == [first]


@pytest.mark.slow
def test_a_config_that_cannot_be_built_is_a_row_too(sweep, made_plan):
    wrong = names(made_plan, "main")[0]
    size = next(row.size for row in made_plan.rows if row.name == wrong)

    def picky(config):
        model = config["model"]
        if all(model[k] == v for k, v in size.kwargs.items()) and config["seed"] == 0:
            raise UserError("heads do not divide the width")
        return make(config)

    assert sweep({}, make=picky)
    rows = {r["row"]: r for r in run.read_registry(sweep.root)}
    assert rows[wrong]["error"] == "heads do not divide the width"
    assert rows[wrong]["lr"] == 2e-3
    report.write_report(list(rows.values()), sweep.root / "report")


def test_where_no_probe_came_through_the_budget_fails_and_the_others_run(sweep, made_plan):
    budget = made_plan.budgets[0]
    mine = [row for row in made_plan.rows if row.budget == budget]
    probes = [row.name for row in mine if row.stage == "probe"]
    assert sweep({name: OWN["diverged"] for name in probes})
    found = status(sweep.root)
    assert {found[row.name] for row in mine} == {"failed"}
    assert {found[row.name] for row in made_plan.rows if row not in mine} == {"done"}
    rows = {r["row"]: r for r in run.read_registry(sweep.root)}
    lost = next(row.name for row in mine if row.stage == "main")
    assert "all probes at C = 2e+11 failed" in rows[lost]["error"]
    assert rows[lost]["lr"] is None
    assert any("lr none" in line for line in sweep.said)
    report.write_table(list(rows.values()), sweep.root / "runs.csv")
    assert sweep({}, retry=True)
    assert set(status(sweep.root).values()) == {"done"}


def test_a_directory_that_another_job_holds_is_no_failure_of_the_run(tmp_path):
    with lock(tmp_path), pytest.raises(OutsideError, match="in use by another job") as raised:
        lock(tmp_path).__enter__()
    with pytest.raises(OutsideError):
        failed(raised.value)
