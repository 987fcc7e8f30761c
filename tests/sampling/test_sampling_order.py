"""Observed order of convergence on a Gaussian mixture, against a reference solve in float64."""

import jax
import jax.numpy as jnp
import mixture
import numpy as np
import pytest
from sampling_cases import PATHS, cases, chosen, smooth_grid, solver

from dit import config
from dit.sampling.sample import sample, solve

STEPS = (100, 200)


@pytest.fixture(scope="module")
def references():
    """For each path: noise, where the exact flow takes it, and a grid for each of STEPS."""
    eps = np.random.default_rng(0).normal(size=(3, 2))
    cases = {}
    with jax.enable_x64(True):
        for name, path in PATHS.items():
            end = jnp.asarray(path.t_max, jnp.float64)
            alpha, sigma = float(path.alpha(end)), float(path.sigma(end))
            x_0 = mixture.flow(sigma * eps, alpha, sigma)
            cases[name] = sigma * eps, x_0, [smooth_grid(path, n) for n in STEPS]
    return cases


def as_video(x):
    return jnp.asarray(x).reshape(len(x), 1, 1, 1, -1)


@pytest.mark.parametrize("case", cases(lambda c: solver(*c).order is not None))
def test_order(case, references):
    built = solver(*case)
    key = jax.random.key(0)
    errors = {name: [] for name in PATHS}
    with jax.enable_x64(True):
        for i in range(len(STEPS)):

            @jax.jit
            def run(which, x, grid):
                path = chosen(which)
                return sample(key, mixture.denoiser(path), path, built, grid, x)

            for which, (name, (x_T, x_0, grids)) in enumerate(references.items()):
                out = np.asarray(run(which, as_video(x_T), grids[i])).reshape(x_0.shape)
                errors[name].append(np.sqrt(np.mean((out - x_0) ** 2)))
    for name, (coarse, fine) in errors.items():
        assert np.log2(coarse / fine) > 0.92 * built.order, (name, coarse, fine)
        assert coarse < 0.03, name


@pytest.mark.parametrize(
    "name",
    ["ddpm", *(pytest.param(p, marks=pytest.mark.slow) for p in ("linear", "cosine", "edm"))],
)
def test_adaptive_error_follows_the_tolerance(name, references):
    path = PATHS[name]
    x_T, x_0, _ = references[name]
    counts, errors = [], []
    with jax.enable_x64(True):
        for tolerance in (1e-3, 1e-6):
            built = solver("diffrax_adaptive", {"rtol": tolerance, "atol": tolerance})
            grid = config.resolve("sampling.grids", "uniform")(path, 1)
            key, denoise = jax.random.key(0), mixture.denoiser(path)
            solution = jax.jit(solve, static_argnums=(1, 2, 3))(
                key, denoise, path, built, grid, as_video(x_T)
            )
            errors.append(np.abs(np.asarray(solution.x_0).reshape(x_0.shape) - x_0).max())
            counts.append(int(solution.evaluations))
    # What is left at 1e-6 is the last step, from t_min to data: half of sigma^2 times the score.
    floor = 3 * float(path.sigma(jnp.asarray(path.t_min or 1e-3 * path.t_max))) ** 2
    assert errors[0] < 0.05
    assert errors[1] < 2e-5 + floor
    assert counts[0] < counts[1] < 600


def test_the_reference_is_the_flow():
    """For one Gaussian the flow is known: it keeps each axis's standard score."""
    x = np.array([[0.7, -1.1], [2.0, 0.3]])
    saved = mixture.MEANS, mixture.COVARIANCES, mixture.WEIGHTS
    try:
        mixture.MEANS, mixture.COVARIANCES = np.array([[0.5, -1.0]]), np.diag([0.25, 4.0])[None]
        mixture.WEIGHTS = np.array([1.0])
        np.testing.assert_allclose(
            mixture.flow(x, 0.0, 1.0), [0.5, -1.0] + x * [0.5, 2.0], atol=1e-8
        )
    finally:
        mixture.MEANS, mixture.COVARIANCES, mixture.WEIGHTS = saved
