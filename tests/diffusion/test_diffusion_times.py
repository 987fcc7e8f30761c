"""Every time distribution: in range, of its quantiles, stratified or not, and apart for each frame."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit import rng
from dit.config import names, resolve
from dit.diffusion.times import at, draw
from dit.types import UserError

PATHS = names("diffusion.paths")
OPTIONS = {
    "shifted": [{"shift": 3.0}, {"tokens": 1024, "base": "logit_normal"}],
    "uniform": [{}, {"levels": 1000}],
    "edm_lognormal": [{}, {"std": 4.0}],  # the wide one passes both ends of every path
}
CASES = [(n, kwargs) for n in names("diffusion.times") for kwargs in OPTIONS.get(n, [{}])]
N = 1024


def drawn(name, kwargs, path, **options):
    path, quantile = resolve("diffusion.paths", path), resolve("diffusion.times", name, **kwargs)
    return [
        np.asarray(x) for x in draw(jax.random.key(0), jnp.arange(N), path, quantile, **options)
    ]


@pytest.mark.first
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_times_stay_in_range_and_follow_their_quantiles(name, kwargs, path):
    made, quantile = resolve("diffusion.paths", path), resolve("diffusion.times", name, **kwargs)
    u = jnp.asarray((np.arange(20_000) + 0.5) / 20_000, jnp.float32)
    expected = np.asarray(at(made, quantile, u)[0])
    for strata, bound in ((None, 1.95 / np.sqrt(N)), (N, 3 / N)):  # the first: one in a thousand
        t, density = drawn(name, kwargs, path, strata=strata)
        assert np.isfinite(t).all()
        assert (density > 0).all()  # not NaN
        assert made.t_min <= t.min()
        assert t.max() <= np.float32(made.t_max)
        assert stats.ks_2samp(t, expected).statistic < bound + 1e-4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_the_ends_of_the_unit_interval_have_times_too(name, kwargs, path):
    path, quantile = resolve("diffusion.paths", path), resolve("diffusion.times", name, **kwargs)
    t, density = at(path, quantile, jnp.array([0.0, 1e-30, 1.0]))
    assert np.isfinite(t).all()
    assert (density > 0).all()
    assert (t >= path.t_min).all()
    assert (t <= jnp.float32(path.t_max)).all()


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_the_density_is_that_of_the_draws(name, kwargs):
    """Its integral over an interval of times is the share of the draws there."""
    path, quantile = (
        resolve("diffusion.paths", "linear"),
        resolve("diffusion.times", name, **kwargs),
    )
    low, high = (float(at(path, quantile, jnp.float32(u))[0]) for u in (0.3, 0.7))
    u = jnp.linspace(0.3, 0.7, 4001)
    t, density = (np.asarray(x, np.float64) for x in at(path, quantile, u))
    np.testing.assert_allclose(np.trapezoid(density, t), 0.4, rtol=5e-3)
    assert low < high


@pytest.mark.first
@pytest.mark.parametrize("strata", [None, N, 8])
@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_frames_are_independent_of_each_other(name, kwargs, strata):
    t, _ = drawn(name, kwargs, "linear", levels=(3,), strata=strata)
    assert t.shape == (N, 3)
    ranks = stats.rankdata(t, axis=0)
    off = np.corrcoef(ranks.T)[~np.eye(3, dtype=bool)]
    assert np.abs(off).max() < 4 / np.sqrt(N)


@pytest.mark.first
@pytest.mark.parametrize(
    ("strata", "levels"), [(32, ()), (33, (3,)), (33, (1, 2, 3)), (1, (3,))], ids=str
)
def test_each_level_fills_every_stratum_once(levels, strata):
    path, quantile = resolve("diffusion.paths", "linear"), resolve("diffusion.times", "uniform")
    whole = range(7 * strata, 8 * strata)  # a batch of the stream
    late = [(1 << 32) + i for i in whole]
    found = []
    for ids in (jnp.array(whole), rng.words(whole), rng.words(late)):
        t, _ = draw(
            jax.random.key(1), jnp.asarray(ids), path, quantile, levels=levels, strata=strata
        )
        for column in np.asarray(t).reshape(strata, -1).T:
            assert sorted(np.floor(column * strata).astype(int)) == list(range(strata))
        found.append(np.asarray(t))
    np.testing.assert_array_equal(found[0], found[1])  # an index may be one word or two
    assert not np.array_equal(found[1], found[2])


def test_the_strata_of_two_frames_take_all_pairs_equally_often():
    path, quantile = resolve("diffusion.paths", "linear"), resolve("diffusion.times", "uniform")
    t, _ = draw(jax.random.key(2), jnp.arange(4096), path, quantile, levels=(2,), strata=4)
    slots = np.floor(np.asarray(t) * 4).astype(int)
    pairs = np.bincount(slots[:, 0] * 4 + slots[:, 1], minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_a_sample_does_not_depend_on_its_batch():
    path, quantile = resolve("diffusion.paths", "linear"), resolve("diffusion.times", "uniform")
    get = partial(draw, jax.random.key(2), path=path, quantile=quantile, levels=(2,), strata=8)
    np.testing.assert_array_equal(get(jnp.arange(8, 24))[0][5:7], get(jnp.arange(13, 15))[0])


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_permuted_is_a_permutation_and_a_fair_one(n):
    keys = jax.random.split(jax.random.key(0), 500)
    places = jax.jit(jax.vmap(lambda k: jax.vmap(lambda i: rng.permuted(k, i, n))(jnp.arange(n))))
    found = np.asarray(places(keys))
    np.testing.assert_array_equal(np.sort(found, 1), np.tile(np.arange(n), (500, 1)))
    if n > 1:
        for i in (0, n - 1):
            assert stats.chisquare(np.bincount(found[:, i], minlength=n)).pvalue > 1e-4
        together = np.bincount((found[:, 0] - found[:, 1]) % n, minlength=n)[1:]
        assert n == 2 or stats.chisquare(together).pvalue > 1e-4


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("uniform", {"levels": 1}),
        ("uniform", {"levels": 0}),
        ("uniform", {"levels": -5}),
        ("logit_normal", {"std": 0.0}),
        ("edm_lognormal", {"std": -1.0}),
        ("shifted", {"shift": 0.0}),
        ("shifted", {"tokens": -4}),
        ("shifted", {"tokens": 4, "base_tokens": 0}),
        ("shifted", {}),
        ("shifted", {"shift": 2.0, "base": "uniform", "levels": 1}),
    ],
)
def test_numbers_that_make_no_distribution_are_refused(name, kwargs):
    with pytest.raises(UserError, match="expected"):
        resolve("diffusion.times", name, **kwargs)


@pytest.mark.parametrize("strata", [0, -3])
def test_strata_that_are_none_are_refused_before_any_step(strata):
    times, weight = resolve("diffusion.times", "uniform"), resolve("diffusion.weights", "none")
    with pytest.raises(UserError, match=f"got strata={strata}; expected a whole number in .1, "):
        resolve("objectives", "denoise", times=times, weight=weight, strata=strata)


def test_time_distributions_against_closed_forms():
    path = resolve("diffusion.paths", "linear")
    u = jnp.array([0.1, 0.5, 0.8])
    z = np.array([-1.2815516, 0.0, 0.8416212])
    np.testing.assert_allclose(
        resolve("diffusion.times", "logit_normal", mean=0.3, std=0.7)(path, u),
        1 / (1 + np.exp(-(0.3 + 0.7 * z))),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        resolve("diffusion.times", "shifted", tokens=1024)(path, u), 2 * u / (1 + u), rtol=1e-5
    )
    edm = resolve("diffusion.paths", "edm")
    np.testing.assert_allclose(
        resolve("diffusion.times", "edm_lognormal")(edm, u), np.exp(-1.2 + 1.2 * z), rtol=1e-3
    )
    ddpm = resolve("diffusion.paths", "ddpm")
    levels = resolve("diffusion.times", "uniform", levels=1000)
    np.testing.assert_allclose(
        levels(ddpm, jnp.array([0.0, 0.5, 0.9999])), [0.001, 0.501, 1.0], rtol=1e-5
    )
