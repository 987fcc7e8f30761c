"""Gradients through whole runs: finite, and those of finite differences, for noise and parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import NEED_TIMES, PATHS, cases, chosen, solver

from dit import config
from dit.diffusion.process import Process, denoiser, x0_gain
from dit.sampling.denoisers import pair
from dit.sampling.sample import sample, sample_keys
from dit.types import Cond, UserError, match_time

SHAPE, STEPS, SMALL = (2, 1, 1, 1, 3), 4, 1e-5
KEYS = sample_keys(jax.random.key(0), SHAPE[0])
GRADIENT = [c for c in cases() if c.values[0][0] != "diffrax_adaptive"]

pytestmark = pytest.mark.slow


def network(theta, x, t):
    """A smooth estimate of data: its gradient depends on where x goes."""
    return jnp.tanh(theta[0] * x) + theta[1] * jnp.cos(2 * x + match_time(t, x))


@pytest.mark.parametrize("case", GRADIENT)
def test_gradients_are_those_of_finite_differences(case, cheap_noise):
    built = solver(*case)
    with jax.enable_x64(True):
        theta = jnp.asarray([0.7, 0.3])
        x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
        along = jax.tree.map(
            lambda a: jnp.cos(1.0 + jnp.arange(a.size)).reshape(a.shape), (theta, x)
        )

        def loss(path, grid, theta, x):
            x_0 = sample(KEYS, functools.partial(network, theta), path, built, grid, x)
            return jnp.sum(jnp.sin(x_0) * jnp.arange(1.0, 4.0)[None, None, None, None])

        def both(path, grid, step):
            """The derivative along a direction: by the gradient, and by differences."""
            slope = jax.grad(functools.partial(loss, path, grid), argnums=(0, 1))(theta, x)
            exact = sum(jnp.vdot(g, a) for g, a in zip(slope, along, strict=True))
            move = lambda e: jax.tree.map(lambda v, a: v + e * a, (theta, x), along)  # noqa: E731
            ends = jax.lax.map(lambda e: loss(path, grid, *move(e)), jnp.asarray([step, -step]))
            return exact, (ends[0] - ends[1]) / (2 * step)

        one_for_all = jax.jit(lambda which, grid: both(chosen(which), grid, SMALL))
        for which, (name, path) in enumerate(PATHS.items()):
            grid = config.resolve("sampling.grids", "uniform")(path, STEPS)
            if case[0] not in NEED_TIMES:
                exact, by_differences = one_for_all(which, grid)
            elif name == "linear":
                exact, by_differences = jax.jit(lambda g, p=path: both(p, g, SMALL))(grid)
            else:
                continue
            assert np.isfinite(exact), name
            np.testing.assert_allclose(exact, by_differences, rtol=2e-5, atol=1e-6, err_msg=name)


def test_the_adaptive_solver_has_derivatives_along_a_direction():
    """Forward mode: reverse mode would need a bound on the steps of a run."""
    path = PATHS["linear"]
    with jax.enable_x64(True):
        built = solver("diffrax_adaptive", {"rtol": 1e-7, "atol": 1e-7})
        grid, x = jnp.linspace(1, 0, 2), jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))

        def run(x):
            return sample(KEYS, lambda x, t: jnp.tanh(x), path, built, grid, x)

        _, slope = jax.jit(lambda x: jax.jvp(run, (x,), (jnp.ones_like(x),)))(x)
        run = jax.jit(run)
        np.testing.assert_allclose(slope, (run(x + 1e-3) - run(x - 1e-3)) / 2e-3, atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", config.names("diffusion.predictions"))
def test_the_gradient_of_an_estimate_is_its_gain(path, prediction):
    """``d x0_hat / d output`` at every time that is trained, both ends included."""
    try:
        process = Process(PATHS[path], config.resolve("diffusion.predictions", prediction))
    except UserError:
        return  # undefined on this path: refused
    t = jnp.linspace(process.path.t_min, process.path.t_max, 5)
    x = jnp.ones((5, 1, 1, 1, 1))

    @jax.jit
    def slopes(theta, x):
        def estimate(theta, x):
            apply_fn = lambda p, x, t, cond: p + 0 * x  # noqa: E731
            return jnp.sum(denoiser(process, apply_fn, theta, Cond())(x, t))

        return jax.grad(estimate, argnums=(0, 1))(theta, x)

    by_theta, by_x = slopes(0.3 * x, x)
    np.testing.assert_allclose(by_theta.ravel(), x0_gain(process, t), rtol=1e-4)
    assert jnp.isfinite(by_x).all()


@pytest.mark.parametrize("name", config.names("sampling.guidance"))
@pytest.mark.parametrize("same", [False, True])
def test_guided_estimates_have_gradients(name, same):
    """Also where both estimates are one, as those of a network that has learnt nothing yet."""
    path = PATHS["linear"]
    guidance = config.resolve("sampling.guidance", name, scale=0.6 if name == "cfgpp" else 3.0)
    grid = jnp.linspace(1, 0, 4)

    @jax.jit
    @jax.grad
    def slope(x):
        one, other = (lambda x, t, k=k: jnp.tanh(k * x) for k in (1.0, 1.0 if same else 0.5))
        guided = guidance(pair(one, other), path, grid)
        return jnp.sum(sample(KEYS, guided, path, solver("heun", {}), grid, x))

    found = slope(jnp.linspace(-1, 1, 6).reshape(SHAPE))
    assert jnp.isfinite(found).all()
    assert jnp.any(found != 0)
