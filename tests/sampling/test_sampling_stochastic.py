"""Stochastic solvers: mean and covariance within sampling error, and noise that belongs to a sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import NEED_TIMES, PATHS, cases, chosen, solver

from dit import rng
from dit.diffusion.process import Denoiser
from dit.sampling.closed_form import THREE, smooth_grid
from dit.sampling.sample import initial_noise, sample, sample_keys, solve, step_keys

STOCHASTIC = cases(lambda c: solver(*c).order is None and c[0] != "diffrax_adaptive")
N, STEPS = 4000, 120


@pytest.fixture(scope="module")
def inputs():
    keys = sample_keys(jax.random.key(3), N)
    noise = {name: initial_noise(keys, (1, 1, 1, 2), path) for name, path in PATHS.items()}
    return (
        keys,
        noise,
        {
            name: jnp.asarray(smooth_grid(path, STEPS, 0.01), jnp.float32)
            for name, path in PATHS.items()
        },
    )


def standard_scores(x):
    """How many standard errors the mean and the second moments are off, at most."""
    mean, covariance = THREE.moments()
    x = np.asarray(x, np.float64).reshape(N, 2)
    square = (x - mean)[:, :, None] * (x - mean)[:, None]
    off_mean = (x.mean(0) - mean) / (x.std(0) / np.sqrt(N))
    off_square = (square.mean(0) - covariance) / (square.std(0) / np.sqrt(N))
    return max(np.abs(off_mean).max(), np.abs(off_square).max())


@pytest.mark.first
@pytest.mark.parametrize("case", STOCHASTIC)
def test_mean_and_covariance(case, inputs):
    keys, noise, grids = inputs
    built = solver(*case)

    def run(path, keys, x, grid):
        return sample(keys, THREE.denoiser(path), path, built, grid, x)

    one_for_all = jax.jit(lambda which, *args: run(chosen(which), *args))
    for which, (name, path) in enumerate(PATHS.items()):
        if case[0] not in NEED_TIMES:
            x_0 = one_for_all(which, keys, noise[name], grids[name])
        elif name in ("linear", "ddpm"):
            x_0 = jax.jit(run, static_argnums=0)(path, keys, noise[name], grids[name])
        else:
            continue
        assert standard_scores(x_0) < 4.5, name


def test_too_much_noise_is_seen():
    """The measure itself: a spread 5% too large is many standard errors away."""
    x = np.random.default_rng(0).multivariate_normal(*THREE.moments(), size=N)
    mean, _ = THREE.moments()
    assert standard_scores(x) < 4.5
    assert standard_scores(mean + 1.1 * (x - mean)) > 4.5


def test_ancestral_samplers_are_the_same_sampler(cheap_noise):
    """DDPM (small) = DDIM (eta 1) = SDE-DPM-Solver++(1), and a learned v of +-1 is large or small."""
    path = PATHS["ddpm"]
    keys = sample_keys(jax.random.key(1), 3)
    x_T = initial_noise(keys, (1, 2, 2, 3), path)
    grid = jnp.asarray(smooth_grid(path, 6, 0.01), jnp.float32)

    def run(name, v=None, **kwargs):
        def full(x, t):
            return jnp.tanh(x), None if v is None else jnp.full_like(x, v)

        built = solver(name, kwargs)
        return jax.jit(lambda: sample(keys, Denoiser(full), path, built, grid, x_T))()

    small = run("ddpm")
    for other in (
        run("ddim", eta=1.0),
        run("dpmpp_sde", order=1),
        run("ddpm", v=-1.0, variance="learned"),
    ):
        np.testing.assert_allclose(other, small, atol=2e-5)
    large = run("ddpm", variance="large")
    assert np.abs(large - small).max() > 0.01
    np.testing.assert_allclose(run("ddpm", v=1.0, variance="learned"), large, atol=2e-5)
    halfway = run("ddpm", v=0.0, variance="learned")
    assert not np.allclose(halfway, small, atol=1e-3)


@pytest.mark.parametrize("case", STOCHASTIC)
def test_a_sample_does_not_depend_on_its_batch(case, cheap_noise):
    """A sample's image is equal to rounding in a batch of 5 and of 2, with its own key."""
    path, built = PATHS["linear"], solver(*case)
    grid = jnp.linspace(1, 0, 5)
    keys = sample_keys(jax.random.key(5), 5)
    x_T = initial_noise(keys, (1, 2, 2, 3), path)
    some = jnp.asarray([3, 1])
    assert jnp.array_equal(initial_noise(keys[some], (1, 2, 2, 3), path), x_T[some])
    run = jax.jit(lambda keys, x: solve(keys, lambda x, t: jnp.tanh(x), path, built, grid, x))
    whole, part = run(keys, x_T).x_0, run(keys[some], x_T[some]).x_0
    np.testing.assert_allclose(whole[some], part, atol=1e-6)
    assert not np.allclose(whole[0], whole[1])


def test_noise_is_bit_equal_whatever_the_batch():
    draws = [
        jax.jit(lambda k, b=b: rng.normal(step_keys(sample_keys(k, b), 4), (1, 7, 5, 3)))(
            jax.random.key(9)
        )
        for b in (3, 8)
    ]
    assert jnp.array_equal(draws[0], draws[1][:3])


def test_a_run_on_eight_devices_has_the_same_noise():
    """Keys and samples sharded over a mesh: bit-equal noise, images equal to rounding."""
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    path, built = PATHS["linear"], solver("ddpm", {})
    grid = jnp.linspace(1, 0, 4)

    @jax.jit
    def run(keys):
        x_T = initial_noise(keys, (1, 2, 2, 3), path)
        return x_T, sample(keys, lambda x, t: jnp.tanh(x), path, built, grid, x_T)

    keys = sample_keys(jax.random.key(2), 8)
    noise, images = run(keys)
    sharded = run(jax.device_put(keys, sharding))
    assert len(sharded[1].sharding.device_set) == 8
    np.testing.assert_array_equal(noise, sharded[0])
    np.testing.assert_allclose(images, sharded[1], atol=1e-6)


@pytest.mark.first
@pytest.mark.parametrize("case", STOCHASTIC)
def test_the_tail_of_a_run_is_the_run_from_there(case, cheap_noise):
    """An edit's steps are those of the whole grid: their noise, and how the churn is divided.

    For solvers that remember nothing of the steps before.
    """
    name, kwargs = case  # a churn that its bound, the same for all numbers of steps, does not hide
    built = solver(name, {**kwargs, **({"churn": 1.0} if name == "edm_stochastic" else {})})
    path, start = PATHS["ddpm"], 4
    grid = jnp.asarray(smooth_grid(path, 8, 0.01), jnp.float32)
    keys = sample_keys(jax.random.key(5), 2)
    x_T = initial_noise(keys, (1, 2, 2, 3), path)

    @jax.jit
    def whole(x):
        return solve(
            keys, lambda x, t: jnp.tanh(x), path, built, grid, x, trajectory=True
        ).trajectory

    @jax.jit
    def tail(x):
        return sample(keys, lambda x, t: jnp.tanh(x), path, built, grid, x, start=start)

    visited = whole(x_T)
    if name != "dpmpp_sde" or kwargs.get("order") == 1:
        np.testing.assert_allclose(tail(visited[start]), visited[-1], atol=1e-5)
    assert visited.shape[0] == 9
