"""The score of the best constant prediction: as drawn, for every path, prediction, weight and time."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config
from dit.diffusion.paths import ddpm, linear
from dit.diffusion.predictions import eps as eps_prediction
from dit.diffusion.predictions import velocity
from dit.diffusion.process import Process, target
from dit.diffusion.times import at, uniform
from dit.diffusion.weights import none
from dit.objectives import denoise
from dit.objectives.constant import Constant, Moments, best_constant
from dit.types import UserError

N, SIZE = 2**14, 8
TIMES = {"shifted": {"shift": 3.0}}
INSIDE = {"t_min": 0.02, "t_max": 0.98}  # where every prediction and weight is finite


def build(room, name, **kwargs):
    known = inspect.signature(config.builder(room, name)).parameters
    return config.resolve(room, name, **{k: v for k, v in kwargs.items() if k in known})


@pytest.fixture(scope="module")
def data():
    """As many examples as draws, 64 different ones, with pixels of unlike means and variances."""
    rng = np.random.default_rng(0)
    few = rng.standard_normal((64, 1, 1, 1, SIZE)) * rng.uniform(0.1, 1, SIZE) + rng.normal(
        size=SIZE
    )
    x = rng.permutation(np.tile(few, (N // 64, 1, 1, 1, 1))).astype(np.float32)
    distance = np.square(few - few.mean(0)).reshape(64, -1).mean(1)
    moments = Moments(float(distance.mean()), float(distance.std()), SIZE, 64, True)
    u = (rng.permutation(N) + rng.random(N)) / N  # stratified, for weights with long tails
    eps = rng.standard_normal(x.shape).astype(np.float32)
    mean = few.mean(0).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(eps), u.astype(np.float32), mean, moments


def cases():
    names = [config.names(f"diffusion.{r}") for r in ("paths", "predictions", "weights", "times")]
    every = itertools.product(*names)
    usual = {"edm": "edm_lognormal"}  # uniform ones over decades have too long a tail to draw
    return [
        c for c in every if c[3] == usual.get(c[0], "uniform") or c[1:3] == ("velocity", "none")
    ]


@pytest.mark.first
@pytest.mark.parametrize("case", cases(), ids="-".join)
def test_the_closed_form_is_what_the_best_constant_scores(data, case):
    x, eps, u, mean, moments = data
    path = build("diffusion.paths", case[0], **INSIDE)
    try:
        process = Process(path, build("diffusion.predictions", case[1]))
    except UserError:
        pytest.skip("refused: undefined on this path")
    weight = build("diffusion.weights", case[2])
    times = build("diffusion.times", case[3], **TIMES.get(case[3], {}))
    with jax.disable_jit():  # a compilation a case would take longer than all of the rest
        found = best_constant(process, times, weight, moments)
    t, density = at(path, times, jnp.asarray(u))
    p, _ = process.prediction.coefficients(path, t)
    w, p = (np.asarray(a, np.float64).reshape(-1, 1) for a in (weight(process, t, density), p))
    away = np.asarray(target(process, x, eps, t), np.float64).reshape(N, -1) - p * mean.reshape(
        1, -1
    )
    losses = (w * np.square(away)).mean(1)
    chance = 4 * found.std / N**0.5
    assert found.loss == pytest.approx(losses.mean(), rel=0.01, abs=chance)
    if case[2:] == ("sigmoid", "edm_lognormal"):
        return  # a weight over log-SNR has too long a tail where levels are drawn seldom
    assert chance < 0.5 * found.loss
    if found.std < 2 * found.loss:  # a longer tail would take more draws
        assert found.std == pytest.approx(losses.std(), rel=0.1)
    assert found.error == 0  # of data that were seen whole
    for shift in (-0.1, 0.1):
        assert (w * np.square(away + shift * p)).mean() > losses.mean() or np.allclose(p, 0)


def test_every_kind_is_among_the_cases():
    assert len(cases()) > 90


@pytest.mark.parametrize("levels", [2, 10, 1000])
def test_discrete_times(levels):
    process = Process(ddpm.build(), eps_prediction.build())
    found = best_constant(
        process, uniform.build(levels=levels), none.build(), Moments(1.0, 1.0, 4, 9, True)
    )
    assert found.loss == pytest.approx(1, rel=1e-6)  # eps has unit variance whatever the data are


@pytest.mark.parametrize("level", ["sample", "frame", "token"])
@pytest.mark.parametrize("strata", [None, 64])
def test_it_is_the_loss_of_a_constant_network(data, level, strata):
    """Through the real objective, with a network that knows the time and not the input."""
    x, _, _, mean, moments = data
    process = Process(linear.build(), velocity.build())
    loss = denoise.build(times=uniform.build(), weight=none.build(), level=level, strata=strata)

    def constant(params, x_t, t, cond):
        p = -jnp.ones_like(t)  # of the velocity on the straight path
        return jnp.broadcast_to(p.reshape(*p.shape, *[1] * (5 - p.ndim)) * mean[None], x_t.shape)

    batch = {"x": jnp.asarray(x[:8192]), "id": jnp.arange(8192)}
    scored, _ = jax.jit(lambda b: loss(jax.random.key(0), {}, constant, process, b))(batch)
    found = best_constant(process, uniform.build(), none.build(), moments)
    assert float(scored) == pytest.approx(found.loss, abs=5 * found.std / 8192**0.5)
    assert not found.beaten_by(float(scored), 8192)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_data_without_a_variance_have_no_score_or_a_sound_one(bad):
    process = Process(linear.build(), velocity.build())
    found = best_constant(process, uniform.build(), none.build(), Moments(bad, 0.0, 4, 9, True))
    assert found is None or 0 < found.loss <= 1


def test_what_beats_it_does_so_by_more_than_chance():
    sure = Constant(loss=1.0, std=0.0, error=0.0)
    assert sure.beaten_by(0.98, 1)
    assert not sure.beaten_by(0.995, 10**9)
    noisy = dataclasses.replace(sure, std=2.0)
    assert not noisy.beaten_by(0.9, 100)
    assert noisy.beaten_by(0.9, 10_000)
    assert noisy.beaten_by(0.4, 1)
    assert not dataclasses.replace(sure, error=0.1).beaten_by(0.9, 10**9)
