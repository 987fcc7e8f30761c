"""Scores while a model trains: those of ``dit.evaluate``, logged with their errors, compiled once."""

import json
import os

import commands
import pytest
import toy_features
from commands import HANGS, SMALL
from compiling import devices

from dit import draw, evaluate, scoring, train
from dit.evaluation import featurise
from dit.training import scores
from dit.training.logging import TIMING, read_metrics
from dit.types import UserError

SCORED = (
    *("--config.steps=8", "--config.log.every=3", "--config.checkpoint.every=100"),
    *("--config.scores.every=3", "--config.scores.num=24", "--config.scores.features=inception_v3"),
    *("--config.scores.names=fd,kd:subsets=4", "--config.scores.reference=train:limit=40"),
    *("--config.samples.num=0", "--config.samples.batch=10"),
)
NAMES = [f"{name}{end}" for name in ("fid", "kid") for end in ("", "_error")]


def counted(patch, thing, name):
    """How often the method is called, one entry a call."""
    calls, real = [], getattr(thing, name)

    def wrapped(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    patch.setattr(thing, name, wrapped)
    return calls


def run(workdir, *more):
    assert train.main([*SMALL, *SCORED, f"--workdir={workdir}", *more]) == 0
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read_metrics(workdir)]


@pytest.fixture(scope="module", autouse=True)
def toy():
    patch = pytest.MonkeyPatch()
    patch.setattr(scoring, "networks", scoring.networks)
    toy_features.install()
    loss = {"held_out_loss": 1.0, "held_out_loss_error": 0.1}
    patch.setattr(evaluate, "held_out_loss", lambda *args: loss)  # which is tested elsewhere
    yield
    patch.undo()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, its rows, and how often sampler and feature networks were compiled."""
    workdir = tmp_path_factory.mktemp("runs") / "scored"
    with pytest.MonkeyPatch.context() as patch:
        sampling = counted(patch, draw.Sampler, "jitted")
        seeing = counted(patch, featurise.Featurise, "_outputs")
        rows = run(workdir)
    return workdir, rows, len(sampling), len(seeing)


def scores_of(rows):
    return {row["step"]: row for row in rows if "scores/fid" in row}


@pytest.mark.slow
def test_scores_come_at_their_steps_and_at_the_end_and_nothing_is_compiled_twice(trained):
    workdir, rows, sampling, seeing = trained
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 8]
    found = scores_of(rows)
    assert list(found) == [3, 6, 8]
    for row in found.values():
        assert set(row) == {"step", *(f"scores/{name}" for name in NAMES)}
        assert row["scores/fid_error"] > 0
    assert found[3]["scores/fid"] != found[8]["scores/fid"]
    assert (sampling, seeing) == (1, 2)  # the reference is seen too, by a program of its own
    assert (workdir / "scores.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 8])
def test_a_score_is_what_evaluation_makes_of_that_checkpoint(trained, step, tmp_path):
    workdir, rows, *_ = trained
    out = tmp_path / "scores.json"
    argv = [f"--workdir={workdir}", f"--step={step}", "--num=24", "--features=inception_v3"]
    argv += ["--scores=fd,kd:subsets=4", "--reference=train:limit=40", f"--out={out}"]
    assert evaluate.main(argv) == 0
    found = json.loads(out.read_text())
    for name in NAMES:
        assert found["figures"][name] == scores_of(rows)[step][f"scores/{name}"]
    ours = json.loads((workdir / "scores" / f"step_{step:07d}.json").read_text())
    assert ours["protocol"] == found["protocol"]
    for key in ("checkpoint_fingerprint", "ema", "seed", "steps", "checkpoint_step"):
        assert ours["recipe"][key] == found["recipe"][key]
    assert evaluate.main(["--compare", str(out), str(workdir / "scores/step_0000003.json")]) == 0


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_scores_scores_that_step_when_it_goes_on(trained, tmp_path):
    _, rows, *_ = trained
    with pytest.MonkeyPatch.context() as patch:
        real = scores.score

        def killed(scorer, state, step, *args):
            if step == 6:
                raise KeyboardInterrupt
            return real(scorer, state, step, *args)

        patch.setattr(scores, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")) == ["3", "6"]
    assert list(scores_of(read_metrics(tmp_path))) == [3]
    again = run(tmp_path)
    assert scores_of(again) == scores_of(rows)
    assert again == rows
    assert run(tmp_path) == rows  # of a finished run, nothing is scored twice


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--config.scores.features=()"], "no features for the scores"),
        (["--config.scores.num=19"], r"scores.num=19, too few to score; expected 20"),
        (["--config.scores.names=fid"], "did you mean"),
        (["--config.scores.names=clip_score"], "there is no clip_score"),
        (["--config.scores.reference=nowhere.npz"], "no such file"),
        (["--config.scores.every=-1"], "scores.every"),
        (["--config.samples.guidance=autoguidance:scale=2"], "weaker model"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_first_step(tmp_path, more, why):
    with pytest.raises(UserError, match=why):
        run(tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_missing_are_named_before_the_first_step(tmp_path, monkeypatch):
    from dit.evaluation import features

    monkeypatch.setattr(scoring, "networks", features.networks)
    monkeypatch.setenv("DIT_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="pt_inception"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_there_were_scores_goes_on_as_if_they_were_off():
    from dit.training.workdir import differences, is_operational

    off = {"scores": {"every": 0, "num": 2000}}
    on = {"scores": {"every": 5, "num": 2000}}
    assert differences({}, off) == {}
    assert differences({}, on)["scores.every"] == ["(not there)", 5]
    assert is_operational("scores.every", on)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "mesh"), [(1, "dp"), (8, "fsdp")])
def test_scores_are_the_same_on_one_device_as_on_eight(trained, tmp_path, count, mesh):
    """To what rounding makes of eight steps of training, in which the runs differ too."""
    _, rows, *_ = trained  # on eight, each with a copy of the weights
    before = (
        "import sys; sys.path[:0] = ['tests/evaluation']; import toy_features as t; t.install()"
    )
    env = {"PYTHONPATH": os.pathsep.join([os.getcwd(), "tests"]), "XLA_FLAGS": devices(count)}
    args = [*SMALL, *SCORED, f"--workdir={tmp_path}", f"--config.mesh.preset={mesh}"]
    process = commands.start("train", *args, before=before, **env)
    _, said = process.communicate(timeout=HANGS)
    assert process.returncode == 0, said
    found = scores_of(read_metrics(tmp_path))
    assert list(found) == [3, 6, 8]
    for step, row in scores_of(rows).items():
        for name in NAMES:
            key = f"scores/{name}"
            assert found[step][key] == pytest.approx(row[key], rel=1e-2, abs=1e-5), (step, name)
