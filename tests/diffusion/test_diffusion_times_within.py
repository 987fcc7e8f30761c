"""A part of a distribution of times against the whole, cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit, ndtr, ndtri

from dit import config
from dit.diffusion.times import at
from dit.types import UserError

PATH = config.resolve("diffusion.paths", "linear")
U = jnp.linspace(0.01, 0.99, 50)


def within(**kwargs):
    return config.resolve("diffusion.times", "within", **kwargs)


def test_it_is_the_whole_distribution_given_the_range():
    """Of uniform times and logit-normal ones in closed form, their densities too."""
    t, density = jax.jit(lambda u: at(PATH, within(low=0.875), u))(U)
    np.testing.assert_allclose(t, 0.875 + 0.125 * U, atol=1e-6)
    np.testing.assert_allclose(density, 8.0, rtol=1e-5)
    spec = "logit_normal:mean=0.5,std=1.5"
    for low, high in ((0.875, None), (None, 0.875), (0.2, 0.6)):
        ends = [ndtr((logit(x) - 0.5) / 1.5) for x in (low or 0.0, high or 1.0)]
        t, density = at(PATH, within(of=spec, low=low, high=high), U)
        expected = expit(0.5 + 1.5 * ndtri(ends[0] + (ends[1] - ends[0]) * np.asarray(U)))
        np.testing.assert_allclose(t, expected, atol=2e-5)
        whole = at(PATH, config.resolve("diffusion.times", **config.parse_spec(spec)), U)
        inside = np.interp(expected, whole[0], whole[1]) / (ends[1] - ends[0])
        middle = slice(5, -5)  # where the whole's densities were taken too
        near = (expected > float(whole[0][0])) & (expected < float(whole[0][-1]))
        np.testing.assert_allclose(
            np.asarray(density)[middle][near[middle]], inside[middle][near[middle]], rtol=0.05
        )


def test_levels_are_kept_and_an_empty_range_is_refused():
    levels = np.linspace(0, 1, 11)
    t, _ = at(PATH, within(of="uniform:levels=11", low=0.35, high=0.75), U)
    np.testing.assert_allclose(np.unique(np.round(t, 5)), levels[4:8], atol=1e-5)
    with pytest.raises(UserError, match=r"within low=0.9 and high=0.3, where there are none"):
        within(low=0.9, high=0.3)(PATH, U)
