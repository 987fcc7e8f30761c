"""Loss weights: the same of every prediction, as in their papers, and what is over log-SNR is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.config import names, resolve
from dit.diffusion.path import identity, logsnr, logsnr_rate, time_of_logsnr
from dit.diffusion.process import Process, determinant, x0_gain
from dit.diffusion.times import at
from dit.types import UserError

PATHS = names("diffusion.paths")
PREDICTIONS = names("diffusion.predictions")
WEIGHTS = names("diffusion.weights")
TIMES = [("shifted", {"shift": 3.0}), ("uniform", {}), ("uniform", {"levels": 1000})]
TIMES += [(name, {}) for name in names("diffusion.times") if name not in ("shifted", "uniform")]


def make(path, prediction, **kwargs):
    path = resolve("diffusion.paths", path, **kwargs)
    return Process(path, resolve("diffusion.predictions", prediction))


@functools.cache
def processes(path, **kwargs):
    found = []
    for prediction in PREDICTIONS:
        try:
            found.append(make(path, prediction, **kwargs))
        except UserError:  # undefined on this path
            continue
    return found


@pytest.mark.parametrize("weight", [w for w in WEIGHTS if w != "none"])  # stated on the output
@pytest.mark.parametrize("path", PATHS)
def test_a_weight_says_the_same_of_every_prediction(path, weight):
    """A weight on the error of x_0 or eps gives one loss, whichever output carries the error."""
    w = resolve("diffusion.weights", weight)
    losses = []
    for process in processes(path):
        t = jnp.linspace(process.path.t_min, process.path.t_max, 9)[1:-1]
        error_in_x0 = x0_gain(process, t)  # of a unit error in the output
        losses.append(np.asarray(w(process, t, 0 * t + 2) / error_in_x0**2))
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=2e-3)


def test_weights_against_their_papers():
    snr = np.array([0.1, 1.0, 30.0])
    t = time_of_logsnr(resolve("diffusion.paths", "cosine"), jnp.log(jnp.asarray(snr)))
    one = jnp.ones(3)
    min_snr = resolve("diffusion.weights", "min_snr")(make("cosine", "v"), t, one)
    np.testing.assert_allclose(min_snr, np.minimum(snr, 5) / (snr + 1), rtol=1e-3)
    s = jnp.array([0.1, 1.0, 3.0])
    edm = resolve("diffusion.weights", "edm")(make("edm", "x0"), s, one)
    np.testing.assert_allclose(edm, (s**2 + 0.25) / (s * 0.5) ** 2, rtol=1e-5)
    flat = resolve("diffusion.weights", "edm")(make("edm", "edm_f"), s, one)
    np.testing.assert_allclose(flat, 1, rtol=1e-5)
    process, t = make("ddpm", "eps"), jnp.array([0.1, 0.3, 0.9])
    sigmoid = resolve("diffusion.weights", "sigmoid", bias=1.0)(process, t, one / 2)
    expected = 1 / (1 + np.exp(logsnr(process.path, t) - 1)) * -logsnr_rate(process.path, t)
    np.testing.assert_allclose(sigmoid, expected, rtol=1e-4)


def bump(level, xp=jnp):
    return xp.exp(-0.5 * xp.square(level))


@functools.cache
def weighted(path, **options):
    """The sigmoid-weighted loss at times of a density, of each process: a program for a path."""
    weight = resolve("diffusion.weights", "sigmoid")

    def loss(process, t, density):
        squared_error = bump(logsnr(process.path, t))  # of eps
        of_output = squared_error * jnp.square(determinant(process, t) / process.path.alpha(t))
        return weight(process, t, density) * of_output

    return jax.jit(lambda t, density: [loss(p, t, density) for p in processes(path, **options)])


ALL = [*((path, {}) for path in PATHS), ("ddpm", {"zero_terminal_snr": True})]


@pytest.mark.first
@pytest.mark.parametrize(("name", "kwargs"), TIMES)
@pytest.mark.parametrize(("path", "options"), ALL)
def test_the_sigmoid_weighs_a_noise_level_the_same_everywhere(path, options, name, kwargs):
    """On every path, for every prediction and distribution of times: a half of the paper's integral."""
    levels = np.linspace(-5, 5, 10_001)
    expected = 0.5 * np.trapezoid(bump(levels, np) / (1 + np.exp(levels - 2)), levels)
    if (path, name) == ("edm", "logit_normal"):
        pytest.skip("has one time in 10^5 below sigma = 1: too few to sum over")
    quantile = resolve("diffusion.times", name, **kwargs)
    u = jnp.asarray((np.arange(10_000) + 0.5) / 10_000, jnp.float32)
    t, density = at(processes(path, **options)[0].path, quantile, u)
    for values in jax.device_get(weighted(path, **options)(t, density)):
        values = values.astype(np.float64)
        np.testing.assert_allclose(values[np.isfinite(values)].mean(), expected, rtol=2e-2)


@pytest.mark.parametrize(
    ("path", "prediction", "name", "kwargs"),
    [
        ("linear", "velocity", "uniform", {}),
        ("linear", "v", "logit_normal", {}),
        ("ddpm", "eps", "uniform", {"levels": 1000}),
        ("edm", "x0", "edm_lognormal", {}),
    ],
)
def test_so_does_the_loss_of_one_network(path, prediction, name, kwargs):
    """With x_0 = 0 the noise can be read from x_t: a network that misses it by a known amount."""
    n, process = 2048, make(path, prediction)
    plain = dataclasses.replace(process.path, c_noise=identity, sigma_data=None)
    process = Process(plain, process.prediction)

    def network(params, x, t, cond):
        t = t.reshape(-1, 1, 1, 1, 1)
        q = process.prediction.coefficients(plain, t)[1]
        missed = jnp.exp(-0.25 * jnp.square(logsnr(plain, t)))
        return q * x / plain.sigma(t) + missed * determinant(process, t) / plain.alpha(t)

    loss = resolve(
        "objectives",
        "denoise",
        times=resolve("diffusion.times", name, **kwargs),
        weight=resolve("diffusion.weights", "sigmoid"),
        strata=n,
    )
    batch = {"x": jnp.zeros((n, 1, 1, 1, 1)), "id": jnp.arange(n)}
    found = jax.jit(lambda: loss(jax.random.key(0), None, network, process, batch)[0])()
    levels = np.linspace(-6, 6, 10_001)
    expected = 0.5 * np.trapezoid(np.exp(-0.5 * levels**2) / (1 + np.exp(levels - 2)), levels)
    np.testing.assert_allclose(found, expected, rtol=3e-2)
