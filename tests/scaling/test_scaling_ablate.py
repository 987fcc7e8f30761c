"""Ablations: intervals that hold the truth, verdicts on planted effects, and nothing run twice."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.config import resolve
from dit.diffusion.process import Process, corrupt, network_input, target
from dit.experiment import build
from dit.scaling import ablate as ablations
from dit.scaling import ablation_figure, verdict
from dit.scaling.ablate import Ablation, ablate
from dit.scaling.evaluate import in_terms_of
from dit.scaling.registry import Registry, comparable
from dit.scaling.short import Trainer
from dit.training.loop import train
from dit.types import Cond, UserError

BASE = {
    "steps": 12,
    "batch_size": 16,
    "data": {"name": "digits"},
    "model": {"name": "dit", "depth": 1, "width": 32, "heads": 2, "patch": 4},
    "path": {"name": "linear", "t_min": 0.01, "t_max": 0.99},
    "prediction": {"name": "velocity"},
    "optimizer": {"name": "adamw", "weight_decay": 0.1, "clip": 1.0},
    "schedule": {"name": "warmup_cosine", "warmup": 3},
    "ema": {"half_lives": (5.0,)},
}
EVALUATION = {"examples": 32, "draws": 64}


def plan(arms, **kwargs):
    settings = {
        "lrs": (3e-3, 1e-2),
        "seeds": (1, 2),
        "evaluation": EVALUATION,
        "extend": 0,
    } | kwargs
    return Ablation(base=BASE, arms=arms, **settings)


def test_t_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for n in (3, 5):
        intervals = [verdict.t_interval(rng.normal(2.0, 3.0, n)) for _ in range(4000)]
        covered = np.mean([x.low < 2.0 < x.high for x in intervals])
        assert covered == pytest.approx(0.95, abs=0.012)
    one = verdict.t_interval([1.0])
    assert (one.mean, one.n, np.isinf(one.high)) == (1.0, 1, True)


def test_holm_is_the_published_example_and_never_below_the_plain_p():
    assert verdict.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdict.holm([]) == []


def test_without_effects_hardly_any_family_has_a_verdict():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(800):
        seeds = rng.normal(size=4)
        arms = {a: dict(enumerate(seeds + rng.normal(size=4))) for a in "abcd"}
        wrong += any(c.verdict in ("better", "worse") for c in verdict.compare(arms, "a"))
    assert wrong / 800 < 0.08


def test_planted_effects_get_their_verdicts():
    rng = np.random.default_rng(2)
    seeds = rng.normal(size=5)  # far larger than the effects, and the same in every arm
    effect = {"base": 0.0, "good": -0.1, "bad": 0.2, "same": 0.0}
    arms = {a: dict(enumerate(e + seeds + 0.01 * rng.normal(size=5))) for a, e in effect.items()}
    found = {c.arm: c for c in verdict.compare(arms, "base")}
    assert [c.verdict for c in found.values()] == ["baseline", "better", "worse", "inconclusive"]
    assert found["good"].difference.mean == pytest.approx(-0.1, abs=0.03)
    assert found["good"].difference.n == 5
    other = {c.arm: c.verdict for c in verdict.compare(arms, "base", lower_is_better=False)}
    assert (other["good"], other["bad"]) == ("worse", "better")
    text = verdict.table(list(found.values()))
    assert text[1]["verdict"] == "better"
    assert text[0]["paired difference [95% t-interval]"] == ""
    figure = ablation_figure.plot(arms, list(found.values()), "loss")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(arms)
    assert "n = 5 seeds" in figure.axes[1].get_xlabel()
    few = ablation_figure.plot(arms, list(found.values())[:1], "loss")
    assert [t.get_text() for t in few.axes[0].get_yticklabels()] == ["base"]


def test_pairs_are_needed_to_see_a_small_effect():
    rng = np.random.default_rng(3)
    seeds = rng.normal(size=6)
    a, b = seeds, seeds + 0.1 + 0.02 * rng.normal(size=6)
    paired, unpaired = verdict.t_interval(b - a), verdict.t_interval(b - a[::-1])
    assert (unpaired.high - unpaired.low) > 5 * (paired.high - paired.low)


def test_an_arm_that_fails_more_often_is_not_better():
    arms = {"base": {1: 1.0, 2: 1.1, 3: 1.2}, "arm": {1: 0.5, 2: 0.6, 3: np.nan}}
    found = verdict.compare(arms, "base")[1]
    assert (found.verdict, found.failed, found.difference.n) == ("inconclusive", 1, 2)
    with pytest.raises(UserError, match="share 1 finished seeds"):
        verdict.compare({"base": {1: 1.0}, "arm": {1: 0.5}}, "base")
    with pytest.raises(UserError, match="expected one of base, arm"):
        verdict.compare(arms, "none")


def test_rates_are_tried_beyond_an_edge_until_the_best_is_inside(tmp_path, monkeypatch):
    tried = []

    class Planted(ablations._Arm):
        """Costs nothing: a parabola in the logarithm of the rate, with its best at 3e-4 or 1e-1."""

        costs, steps = None, 1

        def __init__(self, ablation, name, *rest):
            self.best = {"low": 3e-4, "high": 1e-1, "inside": 3.2e-3}[name]

        def run(self, line, config, measure):
            lr = config["optimizer"]["lr"]
            if line["stage"] == "probe":
                tried.append((line["arm"], lr))
            loss = {"loss": np.log(lr / self.best) ** 2}
            return line | {"lr": lr, "seed": 0, "status": "done", "losses": {"params": loss}}

    monkeypatch.setattr(ablations, "_Arm", Planted)
    arms = {"low": {}, "high": {}, "inside": {}}
    lrs = (1e-3, 3e-3, 1e-2)
    found = ablate(tmp_path, build, plan(arms, lrs=lrs, extend=2), say=lambda text: None)
    rates = {arm: [lr for a, lr in tried if a == arm] for arm in arms}
    assert rates["low"] == [*lrs, 3.33e-4, 1.11e-4]
    assert rates["high"] == [*lrs, 3.33e-2, 1.11e-1]
    assert rates["inside"] == list(lrs)
    edges = {row["arm"]: row["at an edge"] for row in ablations.probe_table(found)}
    assert edges == {"low": "no", "high": "yes", "inside": "no"}
    tried.clear()
    found = ablate(tmp_path / "one", build, plan(arms, lrs=(2e-3,)), say=lambda text: None)
    assert not tried  # a rate without others is taken untried
    assert [(row["arm"], row["lr"]) for row in found] == [
        (arm, 2e-3) for arm in arms for _ in (1, 2)
    ]


@pytest.mark.slow
def test_a_short_run_is_a_run_of_the_training_loop(tmp_path):
    config = {**BASE, "seed": 3, "optimizer": {**BASE["optimizer"], "lr": 3e-3}}
    experiment = build(config)
    state = train(experiment, tmp_path, batches=experiment.batches(), progress=False).state
    short = Trainer(experiment)(experiment.batches(), lr=3e-3, seed=3)
    for name in ("params", "ema"):
        expected, got = getattr(state, name), getattr(short, name)
        flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (expected, got)]
        np.testing.assert_allclose(flat[1], flat[0], atol=2e-5)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    arms = {
        "velocity": {},
        "same": {},
        "x0": {"prediction": {"name": "x0"}},
        "wide": {"model.width": 64},
    }
    root = tmp_path_factory.mktemp("ablation")
    measured = []

    def measure(arm, experiment, trained):
        measured.append(arm)
        return {"last": trained.loss[-1]}

    rows = ablate(root, build, plan(arms), measure=measure, say=lambda text: None)
    assert measured == [arm for arm in arms for _ in range(2)]
    return root, arms, rows


@pytest.mark.slow
def test_arms_that_are_the_same_give_the_same_to_the_last_bit(rows):
    loss = ablations.values(rows[2], "losses", "params", "loss")
    assert loss["same"] == loss["velocity"]
    assert loss["x0"] != loss["velocity"]
    assert loss["velocity"][1] != loss["velocity"][2]
    last = ablations.values(rows[2], "measures", "last")
    assert last["same"] == last["velocity"]
    with pytest.raises(UserError, match="no 'none' in"):
        ablations.values(rows[2], "measures", "none")


class WantsToTrainError(Exception):
    pass


def refuse(config):
    raise WantsToTrainError


def test_what_is_stored_is_not_run_again(rows):
    root, arms, before = rows
    file = (root / "registry.jsonl").read_bytes()
    after = ablate(root, refuse, plan(arms), say=lambda text: None)
    assert after == json.loads(json.dumps(before))
    assert (root / "registry.jsonl").read_bytes() == file


def test_a_killed_ablation_goes_on_and_ends_in_the_same_rows(rows, tmp_path):
    root, arms, before = rows
    lines = (root / "registry.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "registry.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:30])

    def measure(arm, experiment, trained):
        return {"last": trained.loss[-1]}

    after = ablate(tmp_path, build, plan(arms), measure=measure, say=lambda text: None)
    assert comparable(after) == comparable(before)
    assert len(Registry(tmp_path / "registry.jsonl").rows()) == len(lines)


def test_other_settings_are_other_rows(rows):
    _, arms, before = rows
    names = {row["row"] for row in before}
    for other in ({"evaluation": {"examples": 32, "draws": 65}}, {"match": "flops"}):
        with pytest.raises(WantsToTrainError):
            ablate(rows[0], refuse, plan(arms, **other))
    assert len(names) == len(before)


def test_the_rate_is_tuned_and_what_was_matched_is_told(rows):
    best = ablations.best_rates(rows[2])
    table = ablations.probe_table(rows[2])
    assert {row["arm"]: row["best lr"] for row in table} == best
    assert all(row["at an edge"] == "yes" for row in table)  # of two rates both are
    mains = [row for row in rows[2] if row["stage"] == "main"]
    assert all(row["lr"] == best[row["arm"]] for row in mains)
    table, sentence = ablations.matched(rows[2])
    assert sentence.startswith("Matched: steps, images seen.")
    assert "training FLOPs (1.00 to" in sentence
    assert table[0]["steps"] == 12


@pytest.mark.slow
def test_flops_can_be_matched_to_within_a_step(tmp_path):
    arms = {"narrow": {}, "wide": {"model.width": 48}}
    found = ablate(
        tmp_path,
        build,
        plan(arms, match="flops", lrs=(3e-3,)),
        say=lambda text: None,
    )
    costs = {row["arm"]: (row["C"], row["steps"]) for row in found}
    assert costs["wide"][1] < costs["narrow"][1] == 12
    per_step = costs["wide"][0] / costs["wide"][1]
    assert abs(costs["wide"][0] - costs["narrow"][0]) <= per_step / 2


def test_a_run_that_diverges_is_a_row_and_its_rate_is_not_taken(tmp_path):
    arms = {"one": {"optimizer.clip": None}}
    settings = plan(arms, lrs=(1e12, 3e-3))
    found = ablate(tmp_path, build, settings, say=lambda text: None)
    assert [row["status"] for row in found] == ["failed", "done", "done", "done"]
    assert "not finite" in found[0]["error"]
    assert ablations.best_rates(found) == {"one": 3e-3}


def test_bad_plans_are_refused(tmp_path):
    with pytest.raises(UserError, match="another one for the probes"):
        plan({"a": {}}, seeds=(0, 1))
    with pytest.raises(UserError, match="expected two different seeds"):
        plan({"a": {}}, seeds=(1,))
    with pytest.raises(UserError, match="match='time'"):
        plan({"a": {}}, match="time")
    arms = {"a": {}, "b": {"path": {"name": "cosine"}}}
    with pytest.raises(UserError, match="path is not the baseline"):
        ablate(tmp_path, build, plan(arms, lrs=(1e-3,)), say=lambda text: None)


def test_networks_of_other_predictions_are_judged_alike():
    path = resolve("diffusion.paths", "linear", t_min=0.01, t_max=0.99, time_scale=7.0)
    velocity, eps, f = (
        Process(path, resolve("diffusion.predictions", p)) for p in ("velocity", "eps", "edm_f")
    )
    x_0, noise = jax.random.normal(jax.random.key(0), (2, 4, 1, 2, 2, 1))
    t = jnp.array([0.02, 0.4, 0.6, 0.98])
    x_t = corrupt(velocity, x_0, noise, t)

    def network(process, error):
        """Right but for an ``error``; it checks that it is given its own input and time."""

        def apply(params, x, s, cond):
            given, told = network_input(process, x_t, t)
            np.testing.assert_allclose(x, given, rtol=1e-5)
            np.testing.assert_allclose(s, told, rtol=1e-5)
            return target(process, x_0, noise, t) + error

        return apply

    for process, error, expected in (
        (velocity, 0.3, 0.3 * jnp.ones(4)),
        (eps, 0.3, 0.3 / (1 - t)),  # v = (x_t - ...): an error in eps shows as 1 / alpha of it
        (f, 0.0, jnp.zeros(4)),
    ):
        judge, predict = in_terms_of(velocity, process, network(process, error))
        out = predict(None, *network_input(judge, x_t, t), Cond())
        wrong = (out - target(judge, x_0, noise, t))[:, 0, 0, 0, 0]
        np.testing.assert_allclose(wrong, expected, atol=2e-4)


def test_the_figures_show_every_arm_and_say_what_they_show(rows):
    drawn = ablation_figure.by_time(
        rows[2], "params", "velocity", ends=(0.01, 0.99), quantity="ratio"
    ).axes[0]
    assert [t.get_text() for t in drawn.get_legend().get_texts()] == ["same", "x0", "wide"]
    same = drawn.containers[0].lines[0].get_ydata()
    np.testing.assert_array_equal(same, np.ones(10))
    assert (drawn.get_xlabel()[:4], drawn.get_ylabel()) == ("time", "ratio")
    points = {1.0: [1.0, 3.0], 2.0: [2.0, 2.0]}
    (axes,) = ablation_figure.curves({"loss": {"cfg": points}}, "scale").axes
    np.testing.assert_array_equal(axes.containers[0].lines[0].get_ydata(), [2.0, 2.0])
