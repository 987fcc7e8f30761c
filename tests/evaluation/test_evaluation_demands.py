"""Demands on figures: what they mean, and that anything else is refused before work begins."""

import dataclasses
import json
import pathlib

import jax
import pytest

from dit import cli, evaluate
from dit.draw import Sampler
from dit.evaluation import clips, demands
from dit.experiment import build, load_config
from dit.training.checkpoint import Restored
from dit.types import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent

FIGURES = {"accuracy": 0.98, "frechet_matched": 2.0, "frechet_floor": 1.25, "zero": 0.0}


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("accuracy>=0.97", True),
        ("accuracy >= .99", False),
        ("frechet_matched<=2*frechet_floor", True),
        ("frechet_matched <= 1.5 * frechet_floor", False),
        ("frechet_matched<frechet_floor+3/4", False),
        ("frechet_matched<=frechet_floor+3/4", True),
        ("-(accuracy-1)<.03", True),
        ("1e2*accuracy>98", False),
        (" 1.5 < frechet_matched/frechet_floor", True),
        ("accuracy/zero>0", False),
        ("accuracy/zero<=0", False),
        ("accuracy*0>=zero", True),
    ],
)
def test_a_demand_is_the_comparison_it_says(text, met):
    demand = demands.parse(text)
    demand.check(FIGURES, {})
    failure = demand.failure(FIGURES)
    assert (failure is None) == met
    if not met:
        assert demand.text in failure


@pytest.mark.parametrize("text", ["accuracy>=0", "accuracy<=1", "accuracy<1", "0<accuracy"])
def test_what_is_not_a_number_meets_no_demand(text):
    assert demands.parse(text).failure({"accuracy": float("nan")})


@pytest.mark.parametrize(
    "text",
    [
        *("", "accuracy", "accuracy>=", ">=0.9", "accuracy=0.9", "accuracy==0.9", "accuracy!=1"),
        *("0.9<accuracy<1", "accuracy>=0.9 and zero<1", "accuracy>='a'", "accuracy>=None"),
        *(
            "accuracy>=True",
            "1<2",
            "accuracy>=1e999",
            "accuracy>=1j",
            "accuracy**2>0",
            "accuracy>0;",
        ),
        *(
            "__import__('os')>0",
            "accuracy.real>0",
            "accuracy[0]>0",
            "f(accuracy)>0",
            "lambda: 0 > 1",
        ),
        *(
            "accuracy>=0.97, zero<1",
            "a\0>1",
            "(" * 90 + "a" + ")" * 90 + "!",
            "accuracy>" + "9" * 300,
        ),
        *(
            "(x:=accuracy)>0",
            "accuracy>0 if zero else 1",
            "accuracy>=~1",
            "accuracy>=+1",
            "accuracy%2>0",
        ),
    ],
)
def test_what_is_no_demand_is_refused(text):
    with pytest.raises(UserError, match="got the demand"):
        demands.parse(text)


def test_an_unknown_figure_is_refused_with_the_nearest_and_one_left_out_with_the_reason():
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        demands.parse("acuracy>=0.9").check(FIGURES, {})
    with pytest.raises(UserError, match="'copies' is not measured here: too few"):
        demands.parse("copies<=0.05").check(FIGURES, {"copies": "too few"})


# What CI may ask of a run: figures of pictures and of clips.
ASKED = {
    "digits": (
        "accuracy",
        "frechet_matched",
        "frechet_floor_error",
        "nearest_ratio",
        "copies",
        "nfe",
    ),
    "moving_digits": ("kept", "frechet_matched", "frechet_floor", "nearest_ratio_error", "copies"),
}
SMALL = {"model.depth": 1, "model.width": 12, "model.heads": 1, "samples.steps": 1}


@pytest.fixture(
    scope="module", params=["digits", pytest.param("moving_digits", marks=pytest.mark.slow)]
)
def run(request, tmp_path_factory):
    """A model that has learnt nothing, as from a checkpoint, its workdir, and figures to ask of it."""
    experiment = build(load_config(f"{ROOT}/configs/{request.param}.py", SMALL))
    params = jax.jit(experiment.init)(jax.random.key(0))
    restored = Restored(params, step=0, which="params", fingerprint="none")
    return (experiment, restored), tmp_path_factory.mktemp(request.param), ASKED[request.param]


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    patch = pytest.MonkeyPatch()
    patch.setattr(clips, "TRAIN", 200)
    patch.setattr(clips, "HELD_OUT", 120)
    yield
    patch.undo()


@pytest.fixture
def ended(run, monkeypatch):
    """The exit status of ``dit.evaluate``, and whether it drew samples."""
    drew = []
    draw = Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda *a, **k: drew.append(1) or draw(*a, **k))
    monkeypatch.setattr(evaluate, "load_experiment", lambda *args: run[0][0])
    monkeypatch.setattr(evaluate, "load_params", lambda *args: run[0][1])
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: None)

    def of(*demanded, num=10):
        drew.clear()
        argv = [f"--workdir={run[1]}", f"--num={num}", "--solver=euler", "--guidance=1"]
        argv += [f"--demand={text}" for text in demanded]
        with pytest.raises(SystemExit) as end:
            cli.run(lambda _: evaluate.main(argv))
        return end.value.code, bool(drew)

    return of


def test_the_exit_status_says_if_all_demands_are_met(run, ended, capsys):
    _, workdir, names = run
    assert ended(*(f"{name}>=0" for name in names)) == (0, True)
    figures = json.loads((workdir / "evaluation.json").read_text())["figures"]
    assert set(names) <= set(figures)
    capsys.readouterr()
    asked = [f"{names[0]}>=0.97", f"{names[1]}<=2*frechet_floor", "nfe>=1"]
    assert ended(*asked, num=60) == (3, True)  # noise is no digit; ten of it might be
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == [f"unmet demand {d}" for d in asked[:2]]


@pytest.mark.parametrize("text", ["acuracy>=0.9", "nfe", "copies=<1", "nfe>=frechet_flor"])
def test_a_bad_demand_is_refused_before_drawing(ended, text, capsys):
    assert ended("nfe>=0", text) == (2, False)
    assert repr(text) in capsys.readouterr().err


def test_what_cannot_be_measured_is_said_and_not_to_be_demanded(ended, capsys):
    assert ended("frechet_matched>=0", num=1) == (2, False)
    assert "it needs 2 samples" in capsys.readouterr().err
    assert ended("nearest>=0", num=1) == (0, True)
    assert "not measured, it needs 2 samples" in capsys.readouterr().out


def test_a_model_that_diverged_is_not_drawn_from(run, ended, monkeypatch, capsys):
    restored = run[0][1]
    broken = jax.tree.map(lambda x: x * float("nan"), restored.params)
    broken = dataclasses.replace(restored, params=broken)
    monkeypatch.setattr(evaluate, "load_params", lambda *args: broken)
    assert ended() == (2, False)
    assert "the held-out loss of these parameters is nan" in capsys.readouterr().err
