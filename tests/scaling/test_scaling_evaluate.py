"""Frozen evaluation draws, paired differences, and the exact floor that no network goes below."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dit.config import names, resolve
from dit.diffusion.process import Process
from dit.scaling import evaluate as ev
from dit.scaling.floor import floor, optimal_errors, optimal_network
from dit.types import UserError

UNIFORM, FLAT = resolve("diffusion.times", "uniform"), resolve("diffusion.weights", "none")
OBJECTIVE = {"name": "denoise", "times": UNIFORM, "weight": FLAT}


def process(path="linear", prediction="velocity", **kwargs):
    return Process(
        resolve("diffusion.paths", path, **kwargs), resolve("diffusion.predictions", prediction)
    )


def encode(params, x, key=None, ids=None):
    return x / 127.5 - 1.0


@pytest.fixture(scope="module")
def digits():
    return resolve("data.sources", "digits")


def test_the_floor_of_two_points_equals_its_integral():
    """Data -1 and 1: E|x_0 - tanh(alpha x_t / sigma^2)|^2 under one Gaussian, times (1 / sigma)^2."""

    def at(t):
        a, s = 1 - t, t
        missed = lambda e: (1 - np.tanh(a * (a + s * e) / s**2)) ** 2 * stats.norm.pdf(e)  # noqa: E731
        return integrate.quad(missed, -9, 9)[0] / s**2

    exact = integrate.quad(at, 1e-6, 1 - 1e-9, limit=200)[0]
    found = floor(
        process(), np.array([[-1.0], [1.0]]), times=UNIFORM, weight=FLAT, draws=40_000, seed=3
    )
    assert found.error < 0.01 * exact
    assert abs(found.loss - exact) < 3 * found.error


def test_the_floor_of_the_digits(digits):
    found = floor(process(), encode({}, digits.train.x), times=UNIFORM, weight=FLAT, draws=12_000)
    assert abs(found.loss - 0.2236) < 3 * found.error + 0.0011  # 0.2236 +- 0.0004 by 200,000 draws
    told = floor(
        process(),
        encode({}, digits.train.x),
        times=UNIFORM,
        weight=FLAT,
        label=digits.train.label,
        draws=4_000,
    )
    assert told.loss < 0.75 * found.loss


def test_the_floors_error_is_the_spread_of_repeats():
    x = np.random.default_rng(0).standard_normal((20, 1, 2, 2, 1))
    found = [
        floor(process(), x, times=UNIFORM, weight=FLAT, draws=500, seed=seed) for seed in range(60)
    ]
    spread = np.std([f.loss for f in found], ddof=1)
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.3)


@pytest.mark.first
@pytest.mark.parametrize("prediction", names("diffusion.predictions"))
def test_the_best_network_scores_the_floor_with_every_prediction(prediction):
    path = {"edm_f": "edm", "score": "edm", "eps": "edm"}.get(prediction, "linear")
    made = process(path, prediction)
    x = np.random.default_rng(1).standard_normal((16, 1, 2, 2, 1)).astype(np.float32)
    times = resolve("diffusion.times", "logit_normal") if path == "linear" else UNIFORM
    objective = {**OBJECTIVE, "times": times}
    frozen = ev.EvaluationSet(x, np.zeros(16, np.int32), 4096, 0)
    got = ev.floor_losses(frozen, process=made, objective=objective)
    exact = floor(made, x, times=times, weight=FLAT, draws=8192)
    assert abs(got.mean - exact.loss) < 4 * np.hypot(got.error, exact.error)


def gaussian_network(x):
    """The best network for a Gaussian with the mean and covariance of ``x``: a smooth stand-in."""
    flat = x.reshape(len(x), -1)
    mean = jnp.asarray(flat.mean(0))
    values, vectors = np.linalg.eigh(np.cov(flat.T) + 1e-3 * np.eye(flat.shape[1]))
    values, vectors = (jnp.asarray(v, jnp.float32) for v in (values, vectors))

    def apply(params, x_t, t, cond):
        a, s = (1 - t)[:, None], jnp.maximum(t, 1e-6)[:, None]
        z = (x_t.reshape(len(x_t), -1) - a * mean[None]) @ vectors
        z_0 = a * values[None] / (jnp.square(a) * values[None] + jnp.square(s)) * z
        return ((z - a * z_0) / s @ vectors.T - z_0 @ vectors.T - mean[None]).reshape(x_t.shape)

    return apply


@pytest.fixture(scope="module")
def halves(digits):
    """Two networks made from random halves of the training data, and how they are evaluated."""
    order = np.random.default_rng(0).permutation(1500)
    x = encode({}, digits.train.x.astype(np.float32))

    def run(net, frozen, **options):
        return ev.Evaluator(
            frozen, apply_fn=net, process=process(), objective=OBJECTIVE, encode=encode, **options
        )(None)

    return [gaussian_network(x[rows]) for rows in (order[:750], order[750:])], run


def test_common_draws_cut_the_variance_of_a_difference_at_least_five_times(digits, halves):
    nets, run = halves
    sets = [ev.freeze(digits.held_out, draws=297, seed=seed) for seed in range(3)]
    a, b = ([run(net, s) for s in sets] for net in nets)
    pairs = [ev.paired(x, y) for x, y in zip(a, b, strict=True)]
    common = np.mean([p.error**2 for p in pairs])
    stratified = np.mean([x.error**2 + y.error**2 for x, y in zip(a, b, strict=True)])
    independent = (
        np.mean([np.var(x.loss) + np.var(y.loss) for x, y in zip(a, b, strict=True)]) / 297
    )
    assert stratified > 5 * common
    assert independent > stratified
    seen = np.std([p.difference for p in pairs], ddof=1)
    assert seen < 4 * np.sqrt(common)  # the error is not made small by mistake


def test_no_network_is_below_the_floor_on_its_training_data(digits):
    x = digits.train.x[:300]
    frozen = ev.EvaluationSet(x, digits.train.label[:300], 1200, 0)
    options = {"process": process(), "objective": OBJECTIVE, "encode": encode}
    best = ev.floor_losses(frozen, **options, told=False)
    known, network = optimal_network(process(), encode({}, x.astype(np.float32)))
    for blur in (0.98, 0.9, 0.5):

        def worse(params, x_t, t, cond, blur=blur):
            return blur * network(params, x_t, t, cond)

        losses = ev.Evaluator(
            frozen, apply_fn=worse, process=known, objective=OBJECTIVE, encode=encode
        )(None)
        gap = ev.paired(losses, best)
        assert gap.difference > -3 * gap.error
    assert gap.low > 0  # and the worst of them is seen to be above it


def test_draws_are_frozen_stratified_and_told_apart(digits, halves):
    nets, run = halves
    frozen = ev.freeze(digits.held_out, examples=50, draws=200, seed=7)
    first, again = run(nets[0], frozen), run(nets[0], frozen)
    np.testing.assert_array_equal(first.loss, again.loss)
    slots = np.sort(np.floor(first.t * 200).astype(int))
    np.testing.assert_array_equal(slots, np.arange(200))
    np.testing.assert_array_equal(np.bincount(first.example), 4)
    other = run(nets[0], dataclasses.replace(frozen, seed=8))
    assert other.set_hash != first.set_hash
    with pytest.raises(UserError, match="same examples, times and noise"):
        ev.paired(first, other)
    bins = first.bins(10)
    assert [b["draws"] for b in bins] == [20] * 10
    assert np.mean([b["loss"] for b in bins]) == pytest.approx(first.mean, rel=1e-5)
    for size in (64, 200, 500):  # what is drawn does not depend on how it is batched
        batched = run(nets[0], frozen, batch=size)
        np.testing.assert_array_equal(batched.t, first.t)
        np.testing.assert_allclose(batched.loss, first.loss, rtol=1e-4)


def test_raw_and_averaged_parameters_are_evaluated_alike():
    @dataclasses.dataclass
    class State:
        params: object
        ema: dict

    made = process()
    frozen = ev.EvaluationSet(np.ones((8, 1, 2, 2, 1), np.float32), np.zeros(8, np.int32), 64, 0)
    evaluate = ev.Evaluator(
        frozen, apply_fn=lambda p, x, t, c: p * x, process=made, objective=OBJECTIVE
    )
    state = State(jnp.float32(0.5), {"ema_10": jnp.float32(0.5), "ema_20": jnp.float32(0.1)})
    found = ev.evaluate_all(evaluate, state)
    assert set(found) == {"params", "ema_10", "ema_20"}
    assert ev.paired(found["params"], found["ema_10"]).difference == 0
    assert found["ema_20"].mean != found["params"].mean


def test_a_paired_test_is_as_sure_as_it_says():
    """Under no difference, p-values below 0.1 come one time in ten."""
    draw = np.random.default_rng(0)
    t, example = np.linspace(0, 1, 100), np.arange(100)
    hits = 0
    for _ in range(400):
        noise = draw.standard_normal((2, 100))
        a, b = (ev.Losses(1 + t + n, t, example, "same") for n in noise)
        hits += ev.paired(a, b).p < 0.1
    assert 20 <= hits <= 64


def test_float64_errors_agree_with_the_float32_network():
    made, draw = process(), np.random.default_rng(0)
    data, eps = draw.standard_normal((10, 4)), draw.standard_normal((50, 4))
    t, which = draw.uniform(0.05, 0.95, 50).astype(np.float32), draw.integers(0, 10, 50)
    exact = optimal_errors(made, data, data[which], eps, t)
    known, network = optimal_network(made, data.reshape(10, 1, 2, 2, 1).astype(np.float32))
    x_t = (1 - t)[:, None] * data[which] + t[:, None] * eps
    out = jax.jit(network)(None, jnp.asarray(x_t, jnp.float32).reshape(50, 1, 2, 2, 1), t, None)
    target = eps - data[which]
    error = np.square(np.asarray(out).reshape(50, 4) - target).mean(1)
    np.testing.assert_allclose(error, exact, rtol=2e-3, atol=1e-6)
    assert float(known.path.c_noise(jnp.float32(0.5))) == 0.5
