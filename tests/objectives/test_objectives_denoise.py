"""The denoising loss against closed forms, and its independence of how a batch is made up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.config import resolve
from dit.diffusion.posterior import forward_variance, posterior_mean, posterior_variance
from dit.diffusion.process import Process, corrupt, target
from dit.objectives.errors import variational_bound
from dit.types import UserError


def make(path="linear", prediction="velocity", times="uniform", weight="none", **kwargs):
    process = Process(
        resolve("diffusion.paths", path), resolve("diffusion.predictions", prediction)
    )
    loss = resolve(
        "objectives",
        "denoise",
        times=resolve("diffusion.times", times),
        weight=resolve("diffusion.weights", weight),
        **kwargs,
    )
    return process, loss


def batch_of(n, shape=(1, 4, 4, 1), key=0):
    x = jax.random.normal(jax.random.key(key), (n, *shape))
    return {"x": x, "id": jnp.arange(n, dtype=jnp.int32), "label": jnp.arange(n) % 3}


def test_loss_of_the_best_linear_network_equals_its_closed_form():
    """On unit Gaussian data the optimal velocity has error 1 / (alpha^2 + sigma^2) at every t."""
    process, loss = make()

    def optimal(params, x_t, t, cond):
        a, s = (v.reshape(-1, 1, 1, 1, 1) for v in (1 - t, t))
        return (s - a) / (a**2 + s**2) * x_t

    total, metrics = loss(jax.random.key(1), None, optimal, process, batch_of(4096))
    t = np.asarray(metrics["t"])
    expected = 1 / ((1 - t) ** 2 + t**2)
    error = np.asarray(metrics["loss"]) - expected
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(t))
    np.testing.assert_allclose(total, np.mean(metrics["loss"]), rtol=1e-6)


def test_per_example_loss_depends_on_the_id_and_not_on_the_batch():
    process, loss = make(condition_dropout=0.5)

    def network(params, x, t, cond):
        shift = jnp.where(cond.drop, 0.0, cond.label.astype(jnp.float32))
        return 0.3 * x + shift.reshape(-1, 1, 1, 1, 1)

    batch = batch_of(8)
    whole = loss(jax.random.key(2), None, network, process, batch)[1]
    half = {k: v[5:7] for k, v in batch.items()}
    part = loss(jax.random.key(2), None, network, process, half)[1]
    for name in whole:
        np.testing.assert_array_equal(whole[name][5:7], part[name])


def test_condition_dropout_has_its_rate():
    process, loss = make(condition_dropout=0.1)
    seen = {}

    def network(params, x, t, cond):
        seen["drop"] = cond.drop
        return x

    loss(jax.random.key(0), None, network, process, batch_of(4000, (1, 1, 1, 1)))
    assert abs(float(seen["drop"].mean()) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 4000)
    with pytest.raises(
        UserError, match=r"got condition_dropout=2\.0; expected a number in \[0, 1\]"
    ):
        make(condition_dropout=2.0)


def test_weight_multiplies_the_squared_error_of_the_output():
    process, loss = make("cosine", "v", weight="min_snr")
    zero = lambda params, x, t, cond: jnp.zeros_like(x)  # noqa: E731
    metrics = loss(jax.random.key(0), None, zero, process, batch_of(16))[1]
    w = resolve("diffusion.weights", "min_snr")(process, metrics["t"], metrics["t"])
    np.testing.assert_allclose(metrics["loss"], w * metrics["mse"], rtol=1e-4)


def test_frames_get_their_own_noise_levels():
    process, loss = make(level="frame")
    seen = {}

    def network(params, x, t, cond):
        seen["t"] = t
        return x

    loss(jax.random.key(0), None, network, process, batch_of(6, (5, 2, 2, 1)))
    assert seen["t"].shape == (6, 5)
    assert len(np.unique(seen["t"])) == 30


@pytest.mark.parametrize("path", ["ddpm", "cosine", "linear", "edm"])
def test_posterior_is_bayes_rule(path):
    """Product of the two Gaussians q(x_t | x_s) and q(x_s | x_0), in float64."""
    with jax.enable_x64(True):
        path = resolve("diffusion.paths", path)
        t, s = jnp.float64(0.6 * path.t_max), jnp.float64(0.45 * path.t_max)
        x_0, x_t = jnp.float64(0.7), jnp.float64(-0.4)
        ratio = path.alpha(t) / path.alpha(s)
        beta = path.sigma(t) ** 2 - ratio**2 * path.sigma(s) ** 2
        precision = ratio**2 / beta + 1 / path.sigma(s) ** 2
        mean = (ratio * x_t / beta + path.alpha(s) * x_0 / path.sigma(s) ** 2) / precision
        np.testing.assert_allclose(forward_variance(path, t, s), beta, rtol=1e-10)
        np.testing.assert_allclose(posterior_variance(path, t, s), 1 / precision, rtol=1e-10)
        np.testing.assert_allclose(posterior_mean(path, x_0, x_t, t, s), mean, rtol=1e-10)
        zero = jnp.float64(0)
        np.testing.assert_allclose(posterior_mean(path, x_0, x_t, t, zero), x_0, rtol=1e-12)


def test_variational_bound_against_numerical_integration():
    process, _ = make("ddpm", "eps")
    n = 12
    shape = (n, 1, 1, 1, 1)
    x_0 = jnp.linspace(-0.9, 0.9, n).reshape(shape)
    eps = jax.random.normal(jax.random.key(0), shape)
    i = jnp.array([0, 0, 0, 0, 1, 5, 50, 200, 500, 800, 990, 999])
    t = (i + 1) / 1000
    x_t = corrupt(process, x_0, eps, t)
    out = target(process, x_0, eps, t) + 0.1
    v = jnp.linspace(-1, 1, n).reshape(shape)
    bound = np.asarray(variational_bound(process, x_0, x_t, out, v, t)).ravel()

    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    for k in range(n):
        j = int(i[k])
        before = bar[j - 1] if j else 1.0
        small = betas[max(j, 1)] * (1 - bar[max(j, 1) - 1]) / (1 - bar[max(j, 1)])
        fraction = (float(v.ravel()[k]) + 1) / 2
        var = np.exp(fraction * np.log(betas[j]) + (1 - fraction) * np.log(small))
        x, x0 = float(x_t.ravel()[k]), float(x_0.ravel()[k])
        x0_hat = (x - np.sqrt(1 - bar[j]) * float(out.ravel()[k])) / np.sqrt(bar[j])
        posterior = lambda data: (  # noqa: E731
            np.sqrt(before) * betas[j] / (1 - bar[j]) * data  # noqa: B023
            + np.sqrt(1 - betas[j]) * (1 - before) / (1 - bar[j]) * x  # noqa: B023
        )
        mean = posterior(x0_hat)
        if j == 0:  # probability of the 8-bit bin, by quadrature
            grid = np.linspace(x0 - 1 / 255, x0 + 1 / 255, 20001)
            density = np.exp(-((grid - mean) ** 2) / 2 / var) / np.sqrt(2 * np.pi * var)
            expected = -np.log(max(np.trapezoid(density, grid), 1e-12))
        else:
            true_mean, true_var = posterior(x0), small
            grid = np.linspace(-8, 8, 4001) * np.sqrt(true_var) + true_mean
            p = np.exp(-((grid - true_mean) ** 2) / 2 / true_var) / np.sqrt(2 * np.pi * true_var)
            log_ratio = (
                -((grid - true_mean) ** 2) / 2 / true_var
                + (grid - mean) ** 2 / 2 / var
                - 0.5 * np.log(true_var / var)
            )
            expected = np.trapezoid(p * log_ratio, grid)
        np.testing.assert_allclose(bound[k] * np.log(2), expected, rtol=2e-2, atol=2e-4)


def test_learned_variance_adds_the_bound_and_keeps_the_mean_out_of_it():
    process, loss = make("ddpm", "eps")

    def network(params, x, t, cond):
        return jnp.concatenate([params["mean"] * x, params["var"] * jnp.tanh(x)], -1)

    params = {"mean": jnp.float32(0.5), "var": jnp.float32(0.2)}
    run = lambda p: loss(jax.random.key(0), p, network, process, batch_of(8))  # noqa: E731
    metrics = run(params)[1]
    np.testing.assert_allclose(metrics["loss"], metrics["mse"] + metrics["vb"], rtol=1e-6)
    gradient = jax.grad(lambda p: run(p)[1]["vb"].mean())(params)
    assert gradient["mean"] == 0
    assert gradient["var"] != 0
    with pytest.raises(UserError, match="use path 'ddpm'"):
        make("cosine", "v")[1](
            jax.random.key(0), params, network, make("cosine", "v")[0], batch_of(2)
        )
