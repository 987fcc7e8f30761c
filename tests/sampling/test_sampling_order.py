"""Observed order of convergence on a Gaussian mixture, against a reference solve in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import PATHS, cases, solver

from dit import config
from dit.sampling.closed_form import THREE, Mixture, errors, reference
from dit.sampling.sample import solve

STEPS = (100, 200)


@pytest.mark.first
@pytest.mark.parametrize("case", cases(lambda c: solver(*c).order is not None))
def test_order(case):
    built = solver(*case)
    for name, (coarse, fine) in errors(built, PATHS, STEPS).items():
        assert np.log2(coarse / fine) > 0.92 * built.order, (name, coarse, fine)
        assert coarse < 0.03, name


@pytest.mark.parametrize(
    "name",
    ["ddpm", *(pytest.param(p, marks=pytest.mark.slow) for p in ("linear", "cosine", "edm"))],
)
def test_adaptive_error_follows_the_tolerance(name):
    path = PATHS[name]
    x_T, x_0 = reference(THREE, path)
    counts, misses = [], []
    with jax.enable_x64(True):
        for tolerance in (1e-3, 1e-6):
            built = solver("diffrax_adaptive", {"rtol": tolerance, "atol": tolerance})
            grid = config.resolve("sampling.grids", "uniform")(path, 1)
            x = jnp.asarray(x_T).reshape(len(x_T), 1, 1, 1, -1)
            solution = jax.jit(solve, static_argnums=(1, 2, 3))(
                jax.random.key(0), THREE.denoiser(path), path, built, grid, x
            )
            misses.append(np.abs(np.asarray(solution.x_0).reshape(x_0.shape) - x_0).max())
            counts.append(int(solution.evaluations))
    # What is left at 1e-6 is the last step, from t_min to data: half of sigma^2 times the score.
    floor = 3 * float(path.sigma(jnp.asarray(path.t_min or 1e-3 * path.t_max))) ** 2
    assert misses[0] < 0.05
    assert misses[1] < 2e-5 + floor
    assert counts[0] < counts[1] < 600


def test_the_reference_is_the_flow():
    """For one Gaussian the flow is known: it keeps each axis's standard score."""
    x = np.array([[0.7, -1.1], [2.0, 0.3]])
    mean, spread = np.array([[0.5, -1.0]]), np.array([0.5, 2.0])
    one = Mixture(np.array([1.0]), mean, np.diag(spread**2)[None])
    np.testing.assert_allclose(one.flow(x, 0.0, 1.0), mean + x * spread, atol=1e-8)
    for found, expected in zip(one.moments(), (mean[0], np.diag(spread**2)), strict=True):
        np.testing.assert_allclose(found, expected)
