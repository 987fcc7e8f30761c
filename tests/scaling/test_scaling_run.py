"""Sweeps: kills change nothing, nothing runs twice, failures stay, and the report says it all."""

import dataclasses
import json

import numpy as np
import pytest

from dit.experiment import build, load_config
from dit.scaling import __main__ as command
from dit.scaling import report, run
from dit.scaling.plan import Machine, plan
from dit.scaling.plan_file import load_plan, save_plan
from dit.scaling.registry import Registry, comparable
from dit.scaling.surface import Surface
from dit.training.loop import DivergedError
from dit.training.program import Program
from dit.training.workdir import plain
from dit.types import UserError

TRUTH = Surface(0.2, 3.0, 6.0, 0.3, 0.35)
CPU = Machine("cpu", 1e10)
OPTIONS = {"evaluation": {"examples": 16, "draws": 32, "seed": 0}, "weights": "params"}


@pytest.fixture(scope="module")
def base():
    return plain(load_config("configs/shapes.py"))


@pytest.fixture(scope="module")
def made_plan(sizes):
    return plan(
        sizes, CPU, budgets=(2e11, 6e11, 2e12), per_budget=5, ratio=15.0, lrs=(5e-4, 2e-3, 8e-3)
    )


@pytest.fixture
def root(tmp_path, base, made_plan, monkeypatch):
    """A directory with a plan, whose runs cost nothing and lie on a planted surface."""
    save_plan(tmp_path / "plan.json", made_plan, base, OPTIONS)
    trained = []

    def pretend(experiment, row, workdir, frozen, kept):
        config = plain(experiment.config)
        images = config["steps"] * config["batch_size"]
        C, lr = images * row.size.costs.training, config["optimizer"]["lr"]
        best = 2e-3 * (C / 6e11) ** -0.15
        loss = float(TRUTH(row.size.N, images)) * (1 + 0.01 * np.log(lr / best) ** 2)
        trained.append(row.name)
        line = {
            "row": row.name,
            "stage": row.stage,
            "budget": row.budget,
            "N": row.size.N,
            "C": C,
            "images": images,
            "unique_images": images,
            "lr": lr,
            "batch": config["batch_size"],
            "seed": row.seed,
            "evaluation_set": frozen.hash,
            "data": "shapes",
            "tokens": row.size.costs.tokens,
            "device": "none",
            "seconds": float(len(trained)),
        }
        if lr > 5e-3:
            return line | {"status": "failed", "error": "diverged"}
        losses = {"params": {"loss": loss, "error": 0.01, "bins": []}}
        return line | {"status": "done", "losses": losses}

    monkeypatch.setattr(run, "one_run", pretend)
    return tmp_path, trained


def test_a_plan_reads_back_as_it_was(tmp_path, base, made_plan):
    save_plan(tmp_path / "plan.json", made_plan, base, OPTIONS)
    assert load_plan(tmp_path / "plan.json") == (made_plan, base, OPTIONS)
    save_plan(tmp_path / "plan.json", made_plan, base, OPTIONS)
    other = dataclasses.replace(made_plan, budgets=(1.0,))
    with pytest.raises(UserError, match="another plan"):
        save_plan(tmp_path / "plan.json", other, base, OPTIONS)


def test_a_sweep_runs_every_row_once_and_tunes_the_rate(root, made_plan):
    path, trained = root
    assert run.sweep(path, build, say=lambda text: None)
    assert trained == [row.name for row in made_plan.rows]
    assert run.sweep(path, build, say=lambda text: None)
    assert len(trained) == len(made_plan.rows)
    rows = run.read_registry(path)
    assert {r["lr"] for r in rows if r["stage"] == "main"} == {2e-3}
    failed = [r for r in rows if r["status"] == "failed"]
    assert {r["lr"] for r in failed} == {8e-3}
    run.sweep(path, build, retry=True, say=lambda text: None)
    assert len(trained) == len(made_plan.rows) + len(failed)
    assert len(Registry(path / "registry.jsonl").rows()) == len(made_plan.rows) + len(failed)


@pytest.mark.slow
def test_killed_five_times_the_registry_is_the_same(root, monkeypatch, tmp_path):
    path, _ = root
    assert run.sweep(path, build, say=lambda text: None)
    whole = comparable(run.read_registry(path))
    again = tmp_path / "again"
    again.mkdir()
    (again / "plan.json").write_text((path / "plan.json").read_text())
    pretend, calls = run.one_run, []

    def sometimes(*args):
        calls.append(1)
        if len(calls) in (2, 5, 9, 14, 20):
            raise KeyboardInterrupt
        return pretend(*args)

    monkeypatch.setattr(run, "one_run", sometimes)
    kills = 0
    while True:
        try:
            assert run.sweep(again, build, say=lambda text: None)
            break
        except KeyboardInterrupt:
            kills += 1
            with open(again / "registry.jsonl", "ab") as file:
                file.write(b'{"row": "torn')  # as a kill in the midst of a write would leave it
    assert kills == 5
    assert comparable(run.read_registry(again)) == whole


def test_a_row_alone_waits_for_its_probes(root, made_plan):
    path, trained = root
    main = next(row for row in made_plan.rows if row.stage == "main")
    with pytest.raises(UserError, match="needs the probes"):
        run.sweep(path, build, only=main.name)
    for row in made_plan.rows:
        if row.stage == "probe" and row.budget == main.budget:
            run.sweep(path, build, only=row.name, say=lambda text: None)
    run.sweep(path, build, only=main.name, say=lambda text: None)
    assert trained[-1] == main.name
    with pytest.raises(UserError, match="no row 'x'"):
        run.sweep(path, build, only="x")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_report_finds_what_was_planted(root, monkeypatch):
    path, _ = root
    run.sweep(path, build, say=lambda text: None)
    write, written = report.write_report, []
    monkeypatch.setattr(report, "write_report", lambda *a, **k: written.append(write(*a, **k)))
    assert command.main(["report", f"--dir={path}"]) == 0
    text, (found,) = (path / "report/report.md").read_text(), written
    assert found.surface.alpha == pytest.approx(TRUTH.alpha, rel=0.05)
    assert found.surface.beta == pytest.approx(TRUTH.beta, rel=0.05)
    beyond = report.held_out(run.read_registry(path), found, "params")
    assert len(beyond) == 1
    assert abs(beyond[0]["error"]) < 0.03
    for piece in ("2 parabolas", "biased", "[x] one evaluation set", "[x] every image seen once"):
        assert piece in text
    table = (path / "report/runs.csv").read_text().splitlines()
    assert len(table) == 1 + len(run.read_registry(path))
    assert (path / "report/isoflop.png").stat().st_size > 10_000


def test_the_command_plans_in_device_hours(tmp_path, capsys):
    options = ["--smallest=3e3", "--largest=1e5", "--sizes=5", "--head-dim=16", "--aspect=16"]
    options += ["--device-hours=0.5", "--flops-per-second=1e10", "--per-budget=3", "--ratio=15"]
    command.main(["plan", "--config=configs/shapes.py", f"--dir={tmp_path}", *options])
    shown = capsys.readouterr().out
    assert "exact FLOPs" in shown
    made, _, _ = load_plan(tmp_path / "plan.json")
    assert made.flops == pytest.approx(0.5 * 3600 * 1e10, rel=0.01)
    command.main(["rows", f"--dir={tmp_path}"])
    assert capsys.readouterr().out.split() == [row.name for row in made.rows]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_ladder_of_unets_is_planned_and_run(tmp_path):
    """Through the command, with the config of a run: two budgets, two sizes."""
    where = f"--dir={tmp_path}"
    changes = {
        "model.multipliers": "(1,)",
        "model.attention_levels": "()",
        "model.norm_groups": "4",
    }
    changes |= {"schedule.name": "constant", "loader.workers": "0"}
    options = [f"--config.{key}={value}" for key, value in changes.items()]
    options += ["--smallest=1e4", "--largest=1e5", "--sizes=2", "--head-dim=8", "--aspect=8"]
    options += ["--budgets=5e8,1.5e9", "--per-budget=2", "--ratio=3", "--held-out=0", "--seeds=1"]
    options += ["--batches=8", "--lrs=2e-3", "--least-steps=1", "--most-epochs=1000"]
    options += ["--flops-per-second=1e10", "--examples=8", "--draws=8"]
    command.main(["plan", "--config=configs/digits_unet.py", where, *options])
    assert command.main(["run", where]) == 0
    rows = run.read_registry(tmp_path)
    made, _, _ = load_plan(tmp_path / "plan.json")
    assert [row["status"] for row in rows] == ["done"] * len(made.rows)
    for line, row in zip(rows, made.rows, strict=True):
        assert line["N"] == row.size.costs.per_token
        assert line["C"] % (8 * row.size.costs.training) == 0
        assert np.isfinite(line["losses"]["params"]["loss"])


@pytest.mark.slow
def test_a_real_run_is_recorded_resumed_and_its_failure_too(tmp_path, base, made_plan, monkeypatch):
    row = dataclasses.replace(made_plan.rows[0], budget=4e9)
    config = run.row_config(base, row, 2e-3, 16)
    experiment = build(config)
    frozen = run.freeze(experiment.source.held_out, examples=16, draws=32)
    line = run.one_run(experiment, row, tmp_path / "a", frozen, run.Kept())
    assert line["status"] == "done"
    assert line["C"] == config["steps"] * 16 * row.size.costs.training
    assert set(line["losses"]) == {"params", "ema_100"}
    saved = np.load(tmp_path / "a/losses.npz")
    assert saved["params"].mean() == pytest.approx(line["losses"]["params"]["loss"], rel=1e-5)
    again = run.one_run(build(config), row, tmp_path / "b", frozen, run.Kept())
    assert comparable([again]) == comparable([line])
    json.dumps(line)

    def diverge(*args, **kwargs):
        raise DivergedError("the loss of step 3 is not finite")

    monkeypatch.setattr(run, "train", diverge)
    failed = run.one_run(build(config), row, tmp_path / "c", frozen, run.Kept())
    assert (failed["status"], "step 3" in failed["error"]) == ("failed", True)


@pytest.mark.slow
def test_runs_that_differ_in_their_seed_alone_share_one_program(tmp_path, base, made_plan):
    """Compiled once, with the numbers that separate programs give."""
    small = {**base, "schedule": {"name": "constant"}}
    row = dataclasses.replace(made_plan.rows[0], budget=1e6)
    kept, made = run.Kept(), []

    def one(name, of, lr=2e-3, **changes):
        config = run.row_config(small, dataclasses.replace(row, **changes), lr, 8)
        made.append(build(config))
        frozen = run.freeze(made[-1].source.held_out, examples=4, draws=8)
        return run.one_run(made[-1], row, tmp_path / name, frozen, of)

    first, second = one("a", kept), one("b", kept, seed=1)
    assert (first["status"], second["status"]) == ("done", "done")
    assert first["losses"] != second["losses"]
    programs = [p for p in kept.values() if isinstance(p, Program)]
    assert [p.train_step._jitted._cache_size() for p in programs] == [1]
    assert len(kept.values()) == 2  # and one evaluator
    alone = one("c", run.Kept(), seed=1)
    assert second["losses"] == alone["losses"]
    assert one("d", kept, lr=1e-2)["losses"] != first["losses"]
    assert len(kept.values()) == 3  # another rate is another program, judged by the same evaluator


def test_only_so_many_programs_are_kept(base):
    experiment = build({**base, "steps": 1})
    kept, calls = run.Kept(limit=2), []

    def get(what):
        return kept.get(what, experiment, ("seed",), lambda: calls.append(what) or what)

    for what in "abacab":
        assert get(what) == what
    assert calls == ["a", "b", "c", "b"]
    assert kept.values() == ("a", "b")
