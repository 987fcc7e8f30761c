"""How samples leave the devices: a share on each, as bytes, two batches at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from dit import draw, rng
from dit.draw import Recipe, Sampler, placed
from dit.experiment import build
from dit.parallel.mesh import make_mesh, replicated
from dit.types import UserError

CONFIG = {
    "steps": 1,
    "batch_size": 8,
    "data": {"name": "noise", "shape": (1, 4, 4, 1), "num_classes": 3},
    "model": {"name": "dit", "depth": 1, "width": 16, "heads": 2, "patch": 2},
    "path": {"name": "linear"},
    "prediction": {"name": "velocity"},
}
RECIPE = Recipe(labels=tuple(i % 3 for i in range(40)), solver="euler", steps=2, batch=8)


@pytest.fixture(scope="module")
def experiment():
    return build(CONFIG)


@pytest.fixture(scope="module")
def params(experiment):
    return jax.jit(experiment.init)(rng.root(0))


def on(params, count):
    """The parameters on a mesh of so many devices."""
    mesh = make_mesh({"data": count}, jax.devices()[:count])
    return jax.device_put(params, replicated(mesh)), mesh


@pytest.mark.parametrize(("devices", "most"), [(1, 2), (8, 1)])
def test_few_batches_are_under_way_and_on_the_devices(experiment, params, devices, most):
    """Two at most; one where the devices are simulated, whose collectives deadlock with two."""
    params, _ = on(params, devices)
    sampler = Sampler(experiment, RECIPE)
    whole = sampler(params)
    (key,) = sampler._compiled
    run, sent, come, seen = sampler._compiled[key], [], [], []
    before = sum(x.nbytes for x in jax.live_arrays())

    def count(*args):
        sent.append(1)
        return run(*args)

    def put(samples):
        come.append(samples)
        seen.append((len(sent) - len(come) + 1, sum(x.nbytes for x in jax.live_arrays()) - before))

    sampler._compiled[key] = count
    sampler.draw(params, put)
    assert [len(x) for x in come] == [8] * 5
    np.testing.assert_array_equal(np.concatenate(come), whole.samples)
    assert max(under_way for under_way, _ in seen) == most
    one = (
        8 * (4 * 4 + 2 * 4) + 64
    )  # the pictures of a batch, its ids and labels, and what is counted
    assert max(size for _, size in seen) <= (most + 1) * one


def test_a_device_holds_the_bytes_of_its_own_samples(experiment, params):
    params, mesh = on(params, 8)
    sampler = Sampler(experiment, RECIPE)
    batch = {"id": np.arange(8), "label": np.zeros(8, np.int32)}
    lowered = sampler.jitted(mesh).lower(params, None, placed(batch, mesh))
    samples, *scalars = jax.tree.leaves(lowered.out_info)
    assert (samples.dtype, samples.shape) == (np.uint8, (8, 1, 4, 4, 1))
    assert all(s.shape == () for s in scalars)
    compiled = lowered.compile()
    share = compiled.output_shardings[0].shard_shape(samples.shape)
    assert share == (1, 1, 4, 4, 1)
    assert compiled.memory_analysis().output_size_in_bytes < 16 + 64


def test_unlabelled_samples_have_no_labels(params):
    config = {**CONFIG, "data": {"name": "noise", "shape": (1, 4, 4, 1)}}
    experiment = build(config)
    sampler = Sampler(experiment, dataclasses.replace(RECIPE, labels=(), num=3))
    assert sampler.labels is None
    with pytest.raises(UserError, match="without classes"):
        Sampler(experiment, dataclasses.replace(RECIPE, labels=(), num=3, guidance="2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": -1}, "num=-1"),
        ({"num": 10**8}, "num=100000000"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 10**6}, "steps=1000000"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"strength": 0.0}, "strength=0"),
        ({"strength": 1.5}, "strength=1.5"),
    ],
)
def test_numbers_out_of_range_are_no_recipe(change, message):
    with pytest.raises(UserError, match=f"got {message}"):
        dataclasses.replace(RECIPE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "hune"}, "no solvers 'hune'"),
        ({"grid": "uniform:rho=1"}, "rho"),
        ({"guidance": "interval:scale=2", "solver": "diffrax_adaptive"}, "adaptive"),
        ({"guidance": "cfgpp:scale=2"}, r"scale=2; expected a number in \[0, 1\]"),
    ],
)
def test_rules_that_cannot_work_are_refused_without_a_model(change, message):
    with pytest.raises(UserError, match=message):
        draw.rules(dataclasses.replace(RECIPE, **change))


def test_guidance_needs_a_model_that_was_trained_without_labels_too(experiment):
    config = {**CONFIG, "objective": {"name": "denoise", "condition_dropout": 0.0}}
    sure = build(config)
    guided = dataclasses.replace(RECIPE, guidance="2")
    Sampler(experiment, guided)
    Sampler(sure, dataclasses.replace(RECIPE, guidance="autoguidance:scale=2"))
    with pytest.raises(UserError, match="condition_dropout"):
        Sampler(sure, guided)


def test_evaluations_of_an_edit_are_those_of_the_steps_it_takes(experiment):
    recipe = dataclasses.replace(RECIPE, steps=10, guidance="interval:scale=2,low=0.3,high=2")
    inside = [t for t in np.arange(1, 11) / 10 if 0.3 < t / (1 - t + 1e-9) <= 2]
    for strength in (1.0, 0.5, 0.1):
        sampler = Sampler(experiment, dataclasses.replace(recipe, strength=strength))
        taken = np.arange(1, round(10 * strength) + 1) / 10
        expected = len(taken) + sum(np.isclose(t, inside).any() for t in taken)
        assert sampler.evaluations(edited=True) == expected
        assert sampler.evaluations() == 10 + len(inside)


def test_samples_that_are_not_finite_are_refused(experiment, params):
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(UserError, match="not finite"):
        Sampler(experiment, RECIPE)(broken)


def test_one_sampler_draws_and_edits(experiment, params):
    """Each kind of call is compiled once, whatever came before it."""
    params, _ = on(params, 1)
    sampler = Sampler(experiment, dataclasses.replace(RECIPE, labels=(0, 1)))
    start = np.full((2, 1, 4, 4, 1), 7, np.uint8)
    plain = sampler(params).samples
    kept = sampler(params, start=start, mask=np.ones(start.shape, bool)).samples
    np.testing.assert_array_equal(kept, start)
    np.testing.assert_array_equal(sampler(params).samples, plain)
    assert len(sampler._compiled) == 2
