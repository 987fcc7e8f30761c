"""Paths, predictions, times and weights: round trips, closed forms, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import rng
from dit.config import names, resolve
from dit.diffusion.path import derivatives, logsnr, time_of_logsnr
from dit.diffusion.process import Process, corrupt, denoiser, target, to_x0, x0_gain
from dit.types import Cond, UserError, match_time

PATHS = names("diffusion.paths")
PREDICTIONS = names("diffusion.predictions")
UNDEFINED = {(p, o) for p in ("linear", "cosine") for o in ("eps", "score")}
PAIRS = [(p, o) for p in PATHS for o in PREDICTIONS if (p, o) not in UNDEFINED]


def make(path, prediction):
    return Process(resolve("diffusion.paths", path), resolve("diffusion.predictions", prediction))


def times_of(path, n=65):
    return jnp.linspace(path.t_min, path.t_max, n)


def draws(n, key=0):
    shape = (n, 1, 3, 3, 2)
    return (jax.random.normal(jax.random.key(key + i), shape) for i in (0, 1))


@pytest.mark.first
@pytest.mark.parametrize(("path", "prediction"), PAIRS)
def test_round_trip_recovers_the_data_at_every_time(path, prediction):
    with jax.enable_x64(True):
        process = make(path, prediction)
        t = times_of(process.path)
        x_0, eps = draws(len(t))
        out = target(process, x_0, eps, t)
        back = to_x0(process, corrupt(process, x_0, eps, t), out, t)
        np.testing.assert_allclose(back, x_0, atol=1e-5)


@pytest.mark.first
@pytest.mark.parametrize(("path", "prediction"), PAIRS)
def test_round_trip_in_float32_is_as_good_as_its_conditioning(path, prediction):
    process = make(path, prediction)
    t = times_of(process.path)
    x_0, eps = draws(len(t))
    x_t, out = corrupt(process, x_0, eps, t), target(process, x_0, eps, t)
    error = jnp.abs(to_x0(process, x_t, out, t) - x_0).max((1, 2, 3, 4))
    size = jnp.maximum(1, jnp.abs(x_t).max((1, 2, 3, 4)) / process.path.alpha(t).clip(1e-3))
    gain = jnp.maximum(1, jnp.abs(x0_gain(process, t)))
    assert float((error / jnp.minimum(gain, size)).max()) < 1e-5


@pytest.mark.parametrize(("path", "prediction"), sorted(UNDEFINED))
def test_a_prediction_that_is_silent_about_the_data_is_refused(path, prediction):
    with pytest.raises(UserError, match=rf"{prediction}.*undefined on this path at t = [01]"):
        make(path, prediction)


def test_a_shorter_range_makes_the_same_prediction_defined():
    path = resolve("diffusion.paths", "linear", t_max=0.99)
    Process(path, resolve("diffusion.predictions", "eps"))


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_zero_terminal_snr_refuses_noise_predictions_and_takes_v(prediction):
    path = resolve("diffusion.paths", "ddpm", zero_terminal_snr=True)
    assert float(path.alpha(jnp.float32(1))) == 0
    assert float(path.sigma(jnp.float32(1))) == 1
    with pytest.raises(UserError, match="undefined"):
        Process(path, resolve("diffusion.predictions", prediction))
    Process(path, resolve("diffusion.predictions", "v"))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_runs_from_clean_data_to_noise(path):
    path = resolve("diffusion.paths", path)
    zero = jnp.float32(0)
    assert float(path.alpha(zero)) == 1
    assert float(path.sigma(zero)) == 0
    ratio = np.asarray(logsnr(path, times_of(path)[1:-1]))
    assert (np.diff(ratio) < 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_time_of_logsnr_inverts_it(path):
    with jax.enable_x64(True):
        path = resolve("diffusion.paths", path)
        t = times_of(path)[1:-1]
        np.testing.assert_allclose(time_of_logsnr(path, logsnr(path, t)), t, rtol=1e-9)


def test_ddpm_is_the_product_of_its_betas():
    betas = np.linspace(1e-4, 0.02, 1000)
    product = np.cumprod(1 - betas)
    with jax.enable_x64(True):
        path = resolve("diffusion.paths", "ddpm")
        t = jnp.asarray(np.arange(1, 1001) / 1000)
        np.testing.assert_allclose(path.alpha(t) ** 2, product, rtol=1e-8)
        np.testing.assert_allclose(path.sigma(t) ** 2, 1 - product, rtol=1e-6)
        np.testing.assert_allclose(path.c_noise(t), np.arange(1000), atol=1e-9)
        root = np.sqrt(product)
        rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])
        zero = resolve("diffusion.paths", "ddpm", zero_terminal_snr=True)
        np.testing.assert_allclose(zero.alpha(t), rescaled, atol=1e-9)


def test_derivatives_against_closed_forms():
    t = jnp.linspace(0.1, 0.9, 9)
    alpha, alpha_dot, sigma, sigma_dot = derivatives(resolve("diffusion.paths", "cosine"), t)
    np.testing.assert_allclose(alpha, np.cos(np.pi / 2 * t), rtol=1e-5)
    np.testing.assert_allclose(alpha_dot, -np.pi / 2 * np.sin(np.pi / 2 * t), rtol=1e-5)
    np.testing.assert_allclose(sigma, np.sin(np.pi / 2 * t), rtol=1e-5)
    np.testing.assert_allclose(sigma_dot, np.pi / 2 * np.cos(np.pi / 2 * t), rtol=1e-5)


def test_edm_preconditioning_equals_the_papers():
    process = make("edm", "edm_f")
    sigma = jnp.array([0.01, 0.5, 20.0])
    x_t = jnp.full((3, 1, 1, 1, 1), 0.7)
    out = jnp.full_like(x_t, -0.3)
    s, d = np.asarray(sigma), 0.5
    skip, scale = d**2 / (s**2 + d**2), s * d / np.sqrt(s**2 + d**2)
    np.testing.assert_allclose(
        to_x0(process, x_t, out, sigma).ravel(), skip * 0.7 - scale * 0.3, rtol=1e-5
    )
    seen = {}

    def network(params, x, t, cond):
        seen.update(x=x, t=t)
        return x

    denoiser(process, network, None, Cond())(x_t, sigma)
    np.testing.assert_allclose(seen["x"].ravel(), 0.7 / np.sqrt(s**2 + d**2), rtol=1e-5)
    np.testing.assert_allclose(seen["t"], np.log(s) / 4, rtol=1e-5)


def test_noise_does_not_depend_on_the_batch():
    key = rng.stream(jax.random.key(3), "noise", 7)
    ids = jnp.arange(8)
    whole = rng.normal(rng.per_sample(key, ids), (2, 3))
    part = rng.normal(rng.per_sample(key, ids[5:6]), (2, 3))
    np.testing.assert_array_equal(whole[5:6], part)
    assert not np.array_equal(whole[0], whole[1])
    other = rng.normal(rng.per_sample(rng.stream(jax.random.key(3), "time", 7), ids), (2, 3))
    assert not np.array_equal(whole, other)


def test_time_of_the_wrong_shape_is_refused():
    x = jnp.zeros((2, 3, 4, 4, 1))
    for wrong in ((), (1,), (3,), (2, 1), (2, 3, 1), (2, 3, 4, 1), (2, 3, 4, 4, 1)):
        with pytest.raises(ValueError, match=r"time has shape .*, expected a prefix of .* \(2,\)"):
            match_time(jnp.zeros(wrong), x)
    for n in (1, 2, 3, 4):
        assert match_time(jnp.zeros(x.shape[:n]), x).shape == x.shape[:n] + (1,) * (5 - n)
    tokens = jnp.zeros((2, 6, 8))
    assert match_time(jnp.zeros((2, 6)), tokens).shape == (2, 6, 1)
