"""Every time grid on every path: ends, order, the network's times; and each one's own formula."""

import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import PATHS

from dit import config
from dit.diffusion.path import logsnr
from dit.types import UserError

REQUIRED = {"shifted": {"shift": 3.0}}


def grid(name, path, steps, **kwargs):
    made = config.resolve("sampling.grids", name, **{**REQUIRED.get(name, {}), **kwargs})
    return np.asarray(made(PATHS[path], steps))


@pytest.mark.first
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", config.names("sampling.grids"))
@pytest.mark.parametrize("steps", [1, 2, 20, 250])
def test_from_t_max_down_to_data(name, path, steps):
    if name == "ddpm" and PATHS[path].timesteps is None:
        with pytest.raises(UserError, match="integer timesteps"):
            grid(name, path, steps)
        return
    t = grid(name, path, steps)
    assert t.shape == (steps + 1,)
    assert (t[0], t[-1]) == (np.float32(PATHS[path].t_max), 0)
    assert np.all(np.diff(t) < 0)
    assert t[-2] >= np.float32(PATHS[path].t_min)


def test_formulas():
    np.testing.assert_allclose(grid("uniform", "linear", 4), [1, 0.75, 0.5, 0.25, 0], atol=1e-7)
    np.testing.assert_allclose(
        grid("quadratic", "linear", 4), [1, 9 / 16, 1 / 4, 1 / 16, 0], atol=1e-7
    )
    # Karras et al. 2022, table 1, on the path whose times are its noise levels.
    i = np.arange(18)
    levels = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid("karras", "edm", 18)[:-1], levels, rtol=2e-4)
    for path in ("ddpm", "edm"):
        t = grid("logsnr", path, 12)[:-1]
        np.testing.assert_allclose(np.diff(logsnr(PATHS[path], jnp.asarray(t)), 2), 0, atol=5e-3)
    # Esser et al. 2024, eq. 23; 1024 tokens against 256 are a shift of 2.
    t = np.arange(4, 0, -1) / 4
    np.testing.assert_allclose(grid("shifted", "linear", 4)[:-1], 3 * t / (1 + 2 * t), rtol=1e-6)
    np.testing.assert_allclose(
        config.resolve("sampling.grids", "shifted", tokens=1024)(PATHS["linear"], 4)[:-1],
        2 * t / (1 + t),
        rtol=1e-6,
    )
    even = grid("linspace", "linear", 4, last=0.1)
    np.testing.assert_allclose(even, [1, 0.7, 0.4, 0.1, 0], atol=1e-6)
    stretched = grid("shifted", "linear", 4, terminal=0.02)
    shifted = grid("shifted", "linear", 4)
    scale = (1 - stretched[:-1]) / np.maximum(1 - shifted[:-1], 1e-9)
    np.testing.assert_allclose(scale[1:], scale[1], rtol=1e-6)
    np.testing.assert_allclose(stretched[-2], 0.02, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 250, 1000])
def test_the_levels_of_one_noise_grid_are_those_of_another_path(steps):
    """Karras's levels depend on the path by its ends only."""
    wide = {"sigma_min": 0.01, "sigma_max": 150.0}
    levels = []
    for path in ("linear", "cosine"):
        t = jnp.asarray(grid("karras", path, steps, **wide)[1:-1])
        levels.append(PATHS[path].sigma(t) / PATHS[path].alpha(t))
    np.testing.assert_allclose(levels[0], levels[1], rtol=2e-3)


@pytest.mark.parametrize(
    ("kwargs", "steps", "timesteps"),
    [
        ({}, 5, [999, 749, 500, 250, 0]),
        ({"spacing": "trailing"}, 4, [999, 749, 499, 249]),
        ({"spacing": "leading"}, 4, [750, 500, 250, 0]),
        ({"spacing": "leading", "offset": 1}, 4, [751, 501, 251, 1]),
    ],
)
def test_discrete_spacings(kwargs, steps, timesteps):
    t = grid("ddpm", "ddpm", steps, **kwargs)
    np.testing.assert_allclose(PATHS["ddpm"].c_noise(t[:-1]), timesteps, atol=2e-4)
    assert t[-1] == 0


MANY = [*range(2, 1001, 3), 999, 1000]  # each is a program of its own


def timesteps(spacing, steps):
    times = config.resolve("sampling.grids", "ddpm", spacing=spacing)(PATHS["ddpm"], steps)
    times = np.asarray(times, np.float64)[:-1]  # on the host: a slice of each length is a program
    return np.rint(1000 * times).astype(int) - 1


@pytest.mark.slow
def test_respacing_is_that_of_the_original_code_for_many_numbers_of_steps():
    """A running sum of the stride, rounded: both ends are taken."""
    differ = 0
    for steps in MANY:
        taken, at, stride = [], 0.0, 999 / (steps - 1)
        for _ in range(steps):
            taken.append(round(at))
            at += stride
        found = timesteps("respaced", steps)
        np.testing.assert_array_equal(found, taken[::-1])
        differ += not np.array_equal(found, timesteps("linspace", steps))
    assert differ == 65


@pytest.mark.torch
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_spacings_are_those_of_diffusers_for_many_numbers_of_steps(spacing):
    """But for one step of ``linspace`` and ``leading``, which start from data there.

    For some numbers of steps ``trailing`` of diffusers gives one step too many, to timestep -1.
    """
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing)
    for steps in [1] * (spacing == "trailing") + MANY:
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.numpy()
        assert len(expected) == steps or (len(expected) == steps + 1 and expected[-1] == -1)
        np.testing.assert_array_equal(timesteps(spacing, steps), expected[:steps])
    assert timesteps("linspace", 1) == [999]


@pytest.mark.parametrize(
    ("name", "kwargs", "steps"),
    [
        ("uniform", {}, 0),
        ("quadratic", {"power": 0.5}, 4),
        ("karras", {"rho": 0.0}, 4),
        ("karras", {"sigma_min": 100.0}, 4),
        ("logsnr", {"low": 3.0, "high": -3.0}, 4),
        ("shifted", {"tokens": 4}, 4),
        ("shifted", {"shift": -1.0}, 4),
        ("shifted", {"base_tokens": 64}, 4),
        ("ddpm", {}, 1001),
        ("ddpm", {"offset": 1}, 4),
        ("ddpm", {"spacing": "leading", "offset": 400}, 4),
    ],
)
def test_bad_options_are_refused(name, kwargs, steps):
    with pytest.raises(UserError):
        grid(name, "ddpm", steps, **kwargs)
