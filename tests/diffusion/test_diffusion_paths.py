"""Every path keeps its digits in float32: values, derivatives and log-SNR, from data to the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.config import names, resolve
from dit.diffusion.path import derivatives, logsnr
from dit.diffusion.process import Process
from dit.types import UserError

OPTIONS = {
    "ddpm": [
        {},
        {"zero_terminal_snr": True},
        {"betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"timesteps": 10, "zero_terminal_snr": True},
        {"timesteps": 10},  # betas that grow by more than the first
        {"timesteps": 50, "beta_start": 0.02, "beta_end": 0.4, "zero_terminal_snr": True},
    ]
}
CASES = [(name, kwargs) for name in names("diffusion.paths") for kwargs in OPTIONS.get(name, [{}])]


def times_of(path):
    """From data to the end, close to both ends and on both sides of the first timestep."""
    near = np.geomspace(1e-6, path.t_max / 2, 100)
    around = path.t_min * np.array([0.5, 0.999, 1, 1.001, 2, 3])
    t = np.concatenate([[0], near, around, np.linspace(0, path.t_max, 501), path.t_max - near])
    return np.unique(np.clip(t, 0, path.t_max).astype(np.float32))


def quantities(path, t):
    alpha, alpha_dot, sigma, sigma_dot = derivatives(path, t)
    return {
        "alpha": alpha,
        "alpha_dot": alpha_dot,
        "sigma": sigma,
        "sigma_dot": sigma_dot,
        "logsnr": logsnr(path, t),
    }


@pytest.mark.first
@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_float32_keeps_its_digits_everywhere(name, kwargs):
    with jax.enable_x64(True):
        path = resolve("diffusion.paths", name, **kwargs)
        t = times_of(path)
        short, exact = (
            jax.tree.map(np.asarray, quantities(path, jnp.asarray(t, dtype)))
            for dtype in (jnp.float32, jnp.float64)
        )
    for quantity, expected in exact.items():
        found = short[quantity]
        assert found.dtype == np.float32
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(found[~finite], expected[~finite], quantity)
        atol = (
            1e-5 if quantity == "logsnr" else 0
        )  # which crosses zero: its error is sigma's relative
        np.testing.assert_allclose(found[finite], expected[finite], 1e-5, atol, err_msg=quantity)
    assert short["alpha"][0] == 1
    assert short["sigma"][0] == 0
    for quantity in ("alpha", "sigma"):
        assert not np.signbit(short[quantity]).any()  # no minus zero either
        assert np.isfinite(short[quantity]).all()
    assert (np.diff(exact["logsnr"]) < 0).all()


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_paths_have_no_kink_at_the_first_timestep(name, kwargs):
    with jax.enable_x64(True):
        path = resolve("diffusion.paths", name, **kwargs)
        sides = jnp.float64(path.t_min) * jnp.array([1 - 1e-9, 1 + 1e-9])
        for left, right in derivatives(path, sides):
            np.testing.assert_allclose(left, right, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *((name, {"t_min": 0.5, "t_max": 0.5}) for name in ("linear", "cosine")),
        *((name, {"t_min": 0.9, "t_max": 0.1}) for name in ("linear", "cosine")),
        *((name, {"t_min": -0.1}) for name in ("linear", "cosine")),
        *((name, {"t_max": 2.0}) for name in ("linear", "cosine")),
        *((name, {"t_max": float("inf")}) for name in ("linear", "cosine")),
        ("edm", {"sigma_min": 80.0, "sigma_max": 0.002}),
        ("edm", {"sigma_min": 0.0}),
        ("edm", {"sigma_data": -0.5}),
    ],
)
def test_times_that_a_path_does_not_have_are_refused(name, kwargs):
    with pytest.raises(UserError, match=r"expected|set path\.t_min"):
        Process(resolve("diffusion.paths", name, **kwargs), resolve("diffusion.predictions", "v"))
