"""A judge says of one set what the full evaluation says, and samples of models get its figures."""

import dataclasses

import jax
import numpy as np
import pytest

from dit.data.source import ArraySplit, Source
from dit.data.sources import digits, moving_digits, noise
from dit.draw import Recipe
from dit.evaluation import gather
from dit.evaluation.full import evaluation_of
from dit.evaluation.judge import judge_of
from dit.experiment import build
from dit.quality import Quality
from dit.scaling.short import Trained
from dit.types import UserError

TINY = {"name": "dit", "depth": 1, "width": 32, "heads": 2, "patch": 4}
CONFIG = {
    "steps": 1,
    "batch_size": 4,
    "data": {"name": "digits"},
    "model": TINY,
    "path": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "ema": {"half_lives": (9.0,)},
}


@pytest.fixture(scope="module")
def judge():
    return judge_of(digits.build())


def test_a_judge_agrees_with_the_full_evaluation(judge):
    x, label = gather(judge.source.train, 200)
    wrong = np.where(np.arange(200) < 50, (label + 1) % 10, label)
    found, full = judge(x, wrong), evaluation_of(judge.source, 200)(x, wrong)
    assert found == {k: pytest.approx(full[k]) for k in ("accuracy", "frechet")}
    assert found["accuracy"] == pytest.approx(0.75, abs=0.01)


def test_real_images_score_better_than_noisy_ones_and_more_of_them_score_better(judge):
    few, many = judge.of_real(100), judge.of_real(1000)
    assert many["frechet"] < few["frechet"]
    assert few["accuracy"] > 0.98
    x, label = gather(judge.source.train, 100)
    blurred = (x // 2 + 64).astype(np.uint8)
    assert judge(blurred, label)["frechet"] > few["frechet"]
    with pytest.raises(UserError, match="count=1501"):
        judge.of_real(1501)


def of_classes(classes, held_out):
    """Plain images of so many classes; of None, without labels."""
    x = np.zeros((20, 1, 2, 2, 1), np.uint8)
    label = None if classes is None else np.arange(20) % classes
    rows = ArraySplit(x, label, "x")
    aside = ArraySplit(x[:held_out], None if label is None else label[:held_out], "y")
    return Source(rows, aside, (1, 2, 2, 1), classes, "x")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (moving_digits.build(), "expected images"),
        (noise.build(shape=(1, 8, 8, 1)), "expected uint8"),
        (of_classes(None, 5), "no labels"),
        (of_classes(1, 5), "one class"),
        (of_classes(2, 1), "one held-out"),
        (of_classes(2, 0), "without examples"),
    ],
)
def test_what_cannot_be_judged_is_refused(source, says):
    with pytest.raises(UserError, match=says):
        judge_of(source)


@pytest.mark.slow
def test_quality_has_the_figures_of_every_recipe_and_of_the_weights_asked_for():
    experiment = build(CONFIG)
    one, two = (experiment.init(jax.random.key(i)) for i in (0, 1))
    one, two = (  # a last layer of zeros would draw the same whatever comes before it
        jax.tree.map(lambda p, i=i: p + 0.1 * jax.random.normal(jax.random.key(i), p.shape), p)
        for i, p in enumerate((one, two))
    )
    recipe = Recipe(labels=tuple(range(10)) * 2, solver="ddim", steps=2)
    recipes = {"": recipe, "guided": dataclasses.replace(recipe, guidance="3")}
    quality = Quality(recipes, "ema_9")
    first = quality("arm", experiment, Trained(one, {"ema_9": two}, np.zeros(1)))
    assert list(first) == ["accuracy", "frechet", "accuracy guided", "frechet guided"]
    assert quality("arm", experiment, Trained(two, {"ema_9": two}, np.zeros(1))) == first
    assert quality("arm", experiment, Trained(one, {"ema_9": one}, np.zeros(1))) != first
