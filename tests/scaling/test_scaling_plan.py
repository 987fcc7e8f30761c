"""The ladder's spacing and rule; plans whose costs are exact, and the runs they refuse."""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from dit import config, models
from dit.scaling import plan as plans
from dit.scaling.flops import forward_flops
from dit.scaling.ladder import ladder
from dit.scaling.plan_file import load_plan
from dit.sections import complete
from dit.types import UserError

STORED = pathlib.Path(__file__).parents[2] / "notebooks" / "results" / "06_scaling_laws"
IMAGES = {"shape": (1, 8, 8, 3), "patch": 2, "num_classes": 10}
SMALL = {"smallest": 7e3, "largest": 2.4e5, "count": 6, "head_dim": 16, "aspect": 16.0}
CPU = plans.Machine("two cores", flops=5e10, step_seconds=1e-3, start_seconds=5.0)


@pytest.fixture(scope="module")
def sizes():
    return ladder(**IMAGES, **SMALL)


@pytest.mark.parametrize(
    "data", [IMAGES, {"shape": (8, 16, 16, 1), "patch": (4, 4, 4), "block": "modern"}]
)
def test_sizes_are_near_log_spaced_and_keep_the_rule(data):
    made = ladder(**data, **SMALL)
    targets = np.geomspace(7e3, 2.4e5, 6)
    for size, target in zip(made, targets, strict=True):
        assert abs(math.log(size.N / target)) < 0.35
        assert size.width // size.heads == 16
        assert 0.5 <= size.depth / (size.width / 16) <= 2
    steps = np.diff(np.log([size.N for size in made]))
    assert steps.min() > 0.4 * steps.mean()


def test_large_sizes_are_spaced_to_a_few_percent():
    made = ladder((1, 32, 32, 4), smallest=3e7, largest=3e9, count=7, patch=2)
    off = [s.N / t for s, t in zip(made, np.geomspace(3e7, 3e9, 7), strict=True)]
    np.testing.assert_allclose(off, 1, atol=0.1)
    assert all(0.5 <= size.rule <= 2 for size in made)


def test_costs_of_a_rung_are_those_of_its_model(sizes):
    size = sizes[3]
    model = config.resolve("models", "dit", **size.kwargs, in_channels=3, patch=2, num_classes=10)
    shapes = jax.eval_shape(lambda k: models.init(model, k, (1, 8, 8, 3)), jax.random.key(0))
    assert size.costs.parameters == models.count_params(shapes)
    assert size.costs.forward == forward_flops(model, (1, 8, 8, 3))
    assert size.costs.per_token == size.N


def test_a_model_read_from_json_has_the_same_ladder():
    lists, tuples = ({"position_scale": kind([1.0, 2.0, 2.0])} for kind in (list, tuple))
    assert ladder(**IMAGES, **SMALL, **lists) == ladder(**IMAGES, **SMALL, **tuples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 40}, "ask for fewer sizes"),
        ({"head_dim": 512}, "lower head_dim"),
        ({"by": "params"}, "did you mean 'parameters'"),
        ({"smallest": 1e6}, "smallest"),
    ],
)
def test_ladders_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ladder(**IMAGES, **(SMALL | change))


def test_a_total_budget_is_spent_to_within_a_step_a_run(sizes):
    total = 8e12
    made = plans.plan(sizes, CPU, total=total, ratio=10.0, per_budget=4)
    assert len(made.budgets) == 3
    np.testing.assert_allclose(np.diff(np.log(made.budgets)), math.log(10) / 2)
    assert made.flops == pytest.approx(total, rel=0.01)
    for row in made.rows:
        step = row.batch * row.size.costs.training
        assert row.flops == row.steps * step
        assert abs(row.flops - row.budget) <= step / 2
        assert row.steps >= 100
    probes = [row for row in made.rows if row.stage == "probe"]
    assert len(probes) == 9
    assert {row.lr for row in probes} == {1e-3, 2e-3, 4e-3}
    for budget, middle in zip(made.budgets, made.probed, strict=True):
        mains = {(r.size.N, r.seed) for r in made.rows if r.budget == budget and r.stage == "main"}
        assert len(mains) == 7  # 4 sizes x 2 seeds, one of which is the best probe
        assert (middle.N, 0) not in mains
    assert sum(r.stage == "held_out" for r in made.rows) == 1
    assert len({row.name for row in made.rows}) == len(made.rows)
    assert "exact FLOPs" in plans.describe(made)


def test_larger_budgets_get_larger_models_and_times_add_up(sizes):
    made = plans.plan(sizes, CPU, budgets=(1e11, 3e11, 1e12), ratio=10.0, per_budget=3)
    middles = [size.N for size in made.probed]
    assert middles == sorted(middles)
    assert middles[0] < middles[-1]
    row = made.rows[0]
    assert row.seconds == pytest.approx(5 + row.steps * 1e-3 + row.flops / 5e10)
    assert made.seconds == pytest.approx(sum(r.seconds for r in made.rows))


def test_open_batches_are_decided_by_the_probes(sizes):
    made = plans.plan(sizes, CPU, budgets=(1e11, 3e11), ratio=10.0, per_budget=3, batches=(32, 64))
    assert {row.batch for row in made.rows if row.stage == "probe"} == {32, 64}
    assert all(row.steps is None and row.flops is None for row in made.rows if row.stage == "main")


def test_too_few_steps_and_too_many_epochs_are_refused(sizes):
    with pytest.raises(UserError, match=r"fewer than 5000; raise the budget"):
        plans.plan(sizes, CPU, budgets=(3e10, 1e11), least_steps=5000)
    with pytest.raises(UserError, match=r"epochs of 1500 examples, more than 4"):
        plans.plan(sizes, CPU, budgets=(3e10, 1e11), ratio=10.0, unique=1500)
    with pytest.raises(UserError, match="more than the total"):
        plans.plan(sizes, CPU, budgets=(3e11, 1e12), ratio=10.0, total=1e11)
    with pytest.raises(UserError, match="give the total"):
        plans.plan(sizes, CPU)


def test_device_hours_on_a_chip():
    machine = plans.on_chip("TPU v5e", utilisation=0.4, devices=4)
    assert machine.flops == pytest.approx(4 * 0.4 * 197e12)
    assert machine.budget(10.0) == pytest.approx(
        10 * 3600 * 0.4 * 197e12
    )  # device-hours, not hours
    with pytest.raises(UserError, match="no data sheet"):
        plans.on_chip("abacus", 0.4)
    slower = dataclasses.replace(machine, step_seconds=0.1)
    assert slower.seconds(0.0, 10) == pytest.approx(61)


@pytest.mark.parametrize(
    ("known", "tasks"), [(None, ()), (0.25, ("tokens:share=0.25",)), ("data", ("data",))]
)
def test_a_plan_of_an_earlier_version_is_read_in_the_keywords_of_today(known, tasks, tmp_path):
    stored = json.loads((STORED / "plan.json").read_text())
    stored["base"]["objective"]["known"] = known
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    base = load_plan(tmp_path / "plan.json")[1]
    assert tuple(complete(base).objective.tasks) == tasks
