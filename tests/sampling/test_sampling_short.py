"""Runs of one, two and three steps: rough, but samples are as large as data are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import NEED_TIMES, PATHS, cases, chosen, solver

from dit import config
from dit.sampling.sample import initial_noise, sample, sample_keys
from dit.types import match_time

SHAPE, MEAN, SPREAD = (16, 1, 1, 1, 2), 0.3, 0.5
KEYS = sample_keys(jax.random.key(0), SHAPE[0])
# The largest of samples whose data have a mean of 0.3 and a standard deviation of 0.5.
LARGEST = 4.0


def gaussian(path):
    """The exact denoiser for data from one Gaussian."""

    def denoise(x, t):
        s = match_time(t, x)
        alpha, sigma = path.alpha(s), path.sigma(s)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return denoise


@functools.cache
def runs(steps, only=None):
    """``(names, which path, grids, noise)`` of every grid on every path, stacked."""
    rows = []
    for which, (name, path) in enumerate(PATHS.items()):
        if only in (None, name):
            x = np.asarray(initial_noise(KEYS, SHAPE[1:], path))
            for grid in config.names("sampling.grids"):
                if grid != "ddpm" or path.timesteps is not None:
                    kwargs = {"shift": 3.0} if grid == "shifted" else {}
                    made = config.resolve("sampling.grids", grid, **kwargs)(path, steps)
                    rows.append(((name, grid), which, np.asarray(made, np.float32), x))
    names, *arrays = zip(*rows, strict=True)
    return names, *map(np.stack, arrays)


@pytest.mark.first
@pytest.mark.parametrize("steps", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
@pytest.mark.parametrize("case", cases())
def test_short_runs_stay_at_the_scale_of_data(case, steps, cheap_noise):
    built = solver(*case)

    def run(path, grid, x):
        return sample(KEYS, gaussian(path), path, built, grid, x)

    if case[0] in NEED_TIMES:
        names, out = [], []
        for name in ("edm",) if case[0] == "diffrax_adaptive" else ("linear", "edm"):
            some, _, grids, noise = runs(steps, name)
            names += some
            out += list(jax.jit(jax.vmap(functools.partial(run, PATHS[name])))(grids, noise))
    else:
        names, *arrays = runs(steps)
        out = jax.jit(jax.vmap(lambda which, *args: run(chosen(which), *args)))(*arrays)
    found = {n: float(jnp.abs(x).max()) for n, x in zip(names, out, strict=True)}
    if "large" in str(case):  # beta is an upper bound: more than the end of a long step holds
        found = {name: size for name, size in found.items() if name[0] != "edm"}
    assert not {n: size for n, size in found.items() if not size < LARGEST}
