"""Mistakes anywhere in an ablation are found before anything is trained."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from dit import quality
from dit.draw import Recipe
from dit.experiment import build
from dit.quality import Quality
from dit.scaling import ablate as ablations
from dit.scaling.ablate import Ablation, ablate
from dit.scaling.evaluate import Evaluator
from dit.scaling.short import Trained, Trainer
from dit.types import UserError

BASE = {
    "steps": 4,
    "batch_size": 4,
    "data": {"name": "digits"},
    "model": {"name": "dit", "depth": 1, "width": 8, "heads": 1, "patch": 4},
    "path": {"name": "linear", "t_min": 0.01, "t_max": 0.99},
    "prediction": {"name": "velocity"},
    "ema": {"half_lives": (5.0,)},
}


@functools.cache
def built(config):
    return build(json.loads(config))


@pytest.fixture
def traced(monkeypatch):
    """The number of arms whose programs were traced, which is not done here: it takes seconds."""
    arms = []
    monkeypatch.setattr(
        Trainer, "check", lambda self, experiment: arms.append(1) or Trained({}, {}, np.zeros(1))
    )
    monkeypatch.setattr(Evaluator, "check", lambda self, params: arms.append(1))
    return arms


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Run an ablation; fails if anything is trained."""

    def train(*args, **kwargs):
        raise AssertionError("trained before the mistake was found")

    monkeypatch.setattr(Trainer, "__call__", train)

    def run(measure=None, base=BASE, **settings):
        given = {"arms": {"base": {}}, "lrs": (1e-3,), "seeds": (1, 2)} | settings
        evaluation = {"examples": 4, "draws": 8, **given.pop("evaluation", {})}
        ablation = Ablation(base=base, evaluation=evaluation, **given)
        ablate(tmp_path, lambda c: built(json.dumps(c)), ablation, measure=measure)

    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modle.depth": 2}, "unknown config section 'modle': did you mean 'model'"),
        ({"model.dpth": 2}, "unknown config field 'model.dpth': did you mean 'model.depth'"),
        ({"model.depth": "two"}, "depth='two'"),
        ({"model.patch": 3}, "3"),
        ({"prediction": {"name": "velocty"}}, "did you mean 'velocity'"),
        ({"objective.condition_dropoot": 0.1}, "did you mean 'objective.condition_dropout'"),
        ({"times.name": "unifrom"}, "did you mean 'uniform'"),
        ({"weight.name": "min_sn"}, "did you mean 'min_snr'"),
        (
            {"optimizer": {"name": "adamw", "weight_dekay": 0.1}},
            "did you mean 'optimizer.weight_decay'",
        ),
        ({"optimizer.name": "lionn"}, "did you mean 'lion'"),
        ({"schedule": {"name": "warmup_cosine", "warmup": 9}}, "warmup=9"),
        ({"ema.half_lives": (7.0,)}, "no weights 'ema_5': did you mean 'ema_7'"),
        ({"path.name": "cosine"}, "path is not the baseline"),
        ({"data": {"name": "moving_digits"}}, "data of shape"),
    ],
)
def test_a_mistake_in_the_last_arm_is_found_before_the_first_trains(attempt, traced, changes, says):
    with pytest.raises(UserError, match=r"arm 'wrong': ") as raised:
        attempt(arms={"base": {}, "good": {"model.depth": 2}, "wrong": changes}, weights="ema_5")
    assert len(traced) == 4  # of both that are right
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lrs": (1e-3, -1e-3)}, "positive, finite learning rates"),
        ({"lrs": (float("nan"),)}, "positive, finite learning rates"),
        ({"seeds": (1, -2)}, "seed -2"),
        ({"probe_seed": True}, "seed True"),
        ({"weights": "ema_6"}, "no weights 'ema_6': did you mean 'ema_5'"),
        ({"evaluation": {"exmples": 3}}, "'exmples' of the evaluation: did you mean 'examples'"),
        ({"evaluation": {"examples": 300, "draws": 300}}, "examples=300"),
        ({"arms": {"base": {}, "hot": {"optimizer.lr": 1.0}}}, "'hot' changes 'optimizer.lr'"),
        ({"arms": {"base": {"optimizer": {"name": "lion", "lr": 1.0}}}}, "'optimizer.lr'"),
        ({"arms": {"base": {}, "other": {"seed": 3}}}, "'seed', which seeds decides"),
        ({"arms": {"a": {}, "b": {"steps": 3}}, "match": "flops"}, "'steps', which match='flops'"),
    ],
)
def test_a_mistake_in_the_settings_is_found_before_training(attempt, traced, settings, says):
    with pytest.raises(UserError) as raised:
        attempt(**settings)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("recipe", "weights", "says"),
    [
        ({"solver": "huen"}, "params", "did you mean 'heun'"),
        ({"solver": "ddim:ete=1"}, "params", "did you mean 'eta'"),
        ({"grid": "quadratc"}, "params", "did you mean 'quadratic'"),
        ({"guidance": "cgf:scale=2"}, "params", "did you mean 'cfg'"),
        ({"guidance": "autoguidance:scale=2"}, "params", "no weaker model"),
        ({"labels": (1, 10)}, "params", "10"),
        ({"labels": (1,)}, "params", "one sample"),
        ({"steps": 0}, "params", "steps=0"),
        ({}, "ema_9", "no weights 'ema_9': did you mean 'ema_5'"),
    ],
)
def test_a_mistake_in_what_is_drawn_is_found_before_training(
    attempt, traced, monkeypatch, recipe, weights, says
):
    monkeypatch.setattr(quality, "judge_of", lambda source: None)  # fitted in other tests
    given = {"labels": (0, 1, 2), "steps": 2, "solver": "euler"} | recipe
    with pytest.raises(UserError) as raised:
        attempt(measure=Quality({"": Recipe(labels=(0, 1)), "b": Recipe(**given)}, weights))
    assert says in str(raised.value)


@pytest.mark.parametrize("guidance", ["1", "2"])
def test_nothing_is_found_in_recipes_that_can_be_drawn(monkeypatch, guidance):
    monkeypatch.setattr(quality, "judge_of", lambda source: None)
    recipe = Recipe(labels=(0, 1), steps=2, solver="euler", guidance=guidance)
    Quality({"": recipe}).check("base", built(json.dumps(BASE)))


def test_an_error_of_tracing_is_found_before_training_and_names_the_arm(attempt, monkeypatch):
    """The programs of every arm are traced: here the second's cannot be."""
    arms = {"base": {}, "wrong": {"model.depth": 2}}
    make = built

    def broken(config):
        experiment = make(config)
        if experiment.config.model.depth == 2:
            experiment = dataclasses.replace(
                experiment, loss=lambda *args: jnp.ones(2) + jnp.ones(3)
            )
        return experiment

    monkeypatch.setitem(globals(), "built", broken)
    with pytest.raises(TypeError, match="shapes") as raised:
        attempt(arms=arms)
    assert any("arm 'wrong'" in note for note in raised.value.__notes__)


def test_rows_without_the_weights_asked_for_say_so():
    row = {"arm": "a", "stage": "probe", "status": "done", "lr": 1.0}
    row["losses"] = {"params": {"loss": 1.0}}
    for of in (ablations.best_rates, ablations.probe_table):
        with pytest.raises(UserError, match="no weights 'ema_1': expected one of params"):
            of([row], "ema_1")
