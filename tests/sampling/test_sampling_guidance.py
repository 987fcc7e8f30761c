"""Guidance against closed forms and against direct implementations of the papers' loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import CASES, PATHS, label, solver

from dit import config
from dit.diffusion.process import Denoiser, Process, denoiser
from dit.sampling.denoisers import pair, paired
from dit.sampling.nfe import check_countable, nfe
from dit.sampling.sample import sample
from dit.types import Cond, UserError, match_time

KEY, SHAPE, SPREAD = jax.random.key(0), (3, 1, 2, 2, 4), 0.5
RULES = {
    "apg": {"scale": 3.0},
    "autoguidance": {"scale": 2.0},
    "cfg": {"scale": 3.0},
    "cfgpp": {"scale": 0.6},
    "interval": {"scale": 3.0, "low": 0.3, "high": 2.0},
}


def rule(name, **kwargs):
    return config.resolve(
        "sampling.guidance", name, **{**RULES.get(name, {"scale": 2.0}), **kwargs}
    )


def gaussian(path, mean, v=None):
    """The denoiser of one Gaussian of this mean, with a variance output of v."""

    def full(x, t):
        s = match_time(t, x)
        alpha, sigma = path.alpha(s), path.sigma(s)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        return mean + gain * (x - alpha * mean), None if v is None else jnp.full_like(x, v)

    return Denoiser(full)


def two(path, v=None):
    return pair(gaussian(path, 1.0, v), gaussian(path, 0.4, 0.0 if v else None))


def uniform(path, steps):
    return config.resolve("sampling.grids", "uniform")(path, steps)


@pytest.mark.parametrize("name", ["linear", "edm", "ddpm"])
def test_guided_gaussians_are_the_gaussian_of_the_extrapolated_mean(name):
    """Equal spreads: D_u + w (D_c - D_u) is the denoiser of mean ``m_u + w (m_c - m_u)``."""
    path, w = PATHS[name], 3.0
    grid = config.resolve("sampling.grids", "karras")(path, 60)
    guided = rule("cfg", scale=w)(two(path), path, grid)
    x = jnp.linspace(-1, 2, 48).reshape(SHAPE)
    t = jnp.asarray([0.9, 0.4, 0.1]) * path.t_max
    expected = gaussian(path, 0.4 + w * 0.6)(x, t)
    np.testing.assert_allclose(guided(x, t), expected, atol=1e-5)
    # The flow keeps the standard score of every number, up to what of the mean is left at t_max.
    end = jnp.asarray(path.t_max)
    alpha, sigma = path.alpha(end), path.sigma(end)
    x_T = sigma * jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    x_0 = jax.jit(lambda x: sample(KEY, guided, path, solver("heun", {}), grid, x))(x_T)
    mean = 0.4 + w * 0.6
    score = (x_T - alpha * mean) / jnp.sqrt(alpha**2 * SPREAD**2 + sigma**2)
    np.testing.assert_allclose(x_0, mean + SPREAD * score, atol=8e-3)


def test_scale_one_is_off_and_costs_nothing():
    path = PATHS["linear"]
    for name in ("cfg", "interval", "autoguidance", "apg"):
        off, both = rule(name, scale=1.0), two(path)
        assert off(both, path, uniform(path, 4)) is both.conditional
        assert nfe(solver("heun", {}), 4, off) == 7


def test_all_channels_are_guided_unless_the_original_is_asked_for():
    path = PATHS["linear"]
    x, t, grid = jnp.ones(SHAPE), jnp.full((3,), 0.5), uniform(path, 4)
    plain = two(path).conditional(x, t)
    every = rule("cfg")(two(path), path, grid)(x, t)
    some = rule("cfg", channels=3)(two(path), path, grid)(x, t)
    assert not jnp.any(jnp.isclose(every, plain))
    assert jnp.array_equal(some[..., :3], every[..., :3])
    assert jnp.array_equal(some[..., 3:], plain[..., 3:])
    with pytest.raises(UserError, match="channels"):
        rule("cfg", channels=0)


@pytest.mark.parametrize("name", config.names("sampling.guidance"))
def test_the_variance_is_the_conditional_one(name):
    path = PATHS["linear"]
    guided = rule(name)(two(path, v=0.7), path, uniform(path, 4))
    _, v = jax.jit(guided.full)(jnp.ones(SHAPE), jnp.full((3,), 0.5))
    assert jnp.all(v == 0.7)


def test_the_interval_is_guided_and_the_rest_is_free():
    """Levels in (0.3, 2.0]: t from 0.23 to 0.67 on the linear path."""
    path, grid = PATHS["linear"], uniform(PATHS["linear"], 10)
    both, calls = two(path), []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return both.conditional(x, t)

    guidance = rule("interval")
    guided = guidance(pair(counted, gaussian(path, 0.4)), path, grid)
    x, t = jnp.ones(SHAPE), jnp.asarray([0.9, 0.5, 0.1])
    out, plain = guided(x, t), both.conditional(x, t)
    full = rule("cfg")(both, path, grid)(x, t)
    np.testing.assert_allclose(out, jnp.stack([plain[0], full[1], plain[2]]), atol=1e-6)
    inside = sum(0.3 < s / (1 - s) <= 2.0 for s in np.arange(1, 10) / 10)
    assert nfe(solver("ddim", {}), 10, guidance, path=path, grid=grid) == 10 + inside
    assert nfe(solver("heun", {}), 10, guidance, path=path, grid=grid) == 19 + 2 * inside
    with pytest.raises(UserError, match="give nfe the path and the grid"):
        nfe(solver("ddim", {}), 10, guidance)
    with pytest.raises(UserError, match="low < high"):
        rule("interval", low=2.0, high=1.0)


COUNTED = [(case, "interval") for case in CASES if not case[1]]
COUNTED += [(("heun", {}), name) for name in RULES if name != "interval"]


@pytest.mark.first
@pytest.mark.parametrize(
    ("case", "guidance"), COUNTED, ids=[f"{label(case)}-{name}" for case, name in COUNTED]
)
def test_network_evaluations_are_counted_exactly(case, guidance, cheap_noise):
    """Both estimates of every call are counted where they run: of whole runs and of their tails."""
    path, steps, built, chosen = PATHS["linear"], 6, solver(*case), rule(guidance)
    if built.evaluations is None:
        with pytest.raises(UserError, match="adaptive solver"):
            check_countable(built, chosen)
        check_countable(built, rule("cfg"))
        return
    check_countable(built, chosen)
    grid, calls = uniform(path, steps), []

    def counted(mean):
        def denoise(x, t):
            calls.append(1)
            return gaussian(path, mean)(x, t)

        return denoise

    for start in (0, 2, 5):
        calls.clear()
        guided = chosen(pair(counted(1.0), counted(0.4)), path, grid)
        with jax.disable_jit():  # so that a call is a call
            sample(KEY, guided, path, built, grid, jnp.ones(SHAPE), start=start)
        assert len(calls) == nfe(built, steps, chosen, path=path, grid=grid, start=start)


@pytest.mark.parametrize("name", ["linear", "ddpm"])
def test_cfgpp_is_its_papers_ddim_loop(name):
    path, lam = PATHS[name], 0.6
    grid, both = uniform(path, 7), two(path)
    x = x_T = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    for t, u in itertools.pairwise(grid):
        times = jnp.full((3,), t)
        (c, _), (d, _) = both.both(x, times)
        eps = (x - path.alpha(t) * d) / path.sigma(t)
        x = path.alpha(u) * (d + lam * (c - d)) + path.sigma(u) * eps
    guided = rule("cfgpp", scale=lam)(both, path, grid)
    out = jax.jit(lambda x: sample(KEY, guided, path, solver("ddim", {}), grid, x))(x_T)
    np.testing.assert_allclose(out, x, atol=2e-5)
    with pytest.raises(UserError, match=r"scale=3.0; expected a number in \[0, 1\]"):
        rule("cfgpp", scale=3.0)


def test_cfgpp_between_nodes_uses_the_step_that_crosses_them():
    path, grid = PATHS["linear"], uniform(PATHS["linear"], 4)
    guided, x = rule("cfgpp")(two(path), path, grid), jnp.ones(SHAPE)

    def scale(t):
        (c, _), (d, _) = two(path).both(x, t)
        return ((guided(x, t) - d) / (c - d))[:, 0, 0, 0, 0]

    at_nodes = scale(jnp.asarray([1.0, 0.75, 0.25]))
    np.testing.assert_allclose(at_nodes, [0.6, 0.6 / (1 - (1 / 3)), 0.6], rtol=1e-4)
    np.testing.assert_allclose(scale(jnp.asarray([0.8, 0.6, 0.1])), at_nodes, rtol=1e-4)


def test_apg_is_its_papers_loop():
    """Momentum, bound and projection by hand, over the steps of DDIM."""
    path, w, beta, bound, eta = PATHS["linear"], 4.0, -0.5, 0.3, 0.25
    grid = uniform(path, 6)
    good = Denoiser(lambda x, t: (jnp.tanh(x) + 0.3 * jnp.sin(2 * x), None))
    both = pair(good, gaussian(path, 0.4))
    x = x_T = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    average, bounded = np.zeros(SHAPE), 0
    for t, u in itertools.pairwise(grid):
        (c, _), (d, _) = both.both(x, jnp.full((3,), t))
        c = np.asarray(c)
        average = np.asarray(c - d) + beta * average
        total = np.empty(SHAPE)
        for i in range(len(c)):
            delta, unit = average[i].ravel(), c[i].ravel() / np.linalg.norm(c[i])
            length, r = np.linalg.norm(delta), bound * np.sqrt(delta.size)
            bounded += length > r
            delta = delta * min(1, r / length)
            along = (delta @ unit) * unit
            total[i] = (delta - along + eta * along).reshape(SHAPE[1:])
        x_0 = c + (w - 1) * total
        eps = (x - path.alpha(t) * x_0) / path.sigma(t)
        x = path.alpha(u) * x_0 + path.sigma(u) * eps
    assert 0 < bounded < 6 * len(x_T)
    guidance = rule("apg", scale=w, momentum=beta, threshold=bound, eta=eta)
    guided = guidance(both, path, grid)
    out = jax.jit(lambda x: sample(KEY, guided, path, solver("ddim", {}), grid, x))(x_T)
    np.testing.assert_allclose(out, x, atol=1e-4)


def test_apg_without_its_parts_is_plain_guidance():
    path = PATHS["linear"]
    x, t, grid = jnp.ones(SHAPE), jnp.full((3,), 0.5), uniform(path, 4)
    apg = rule("apg", scale=3.0, momentum=0.0, threshold=None, eta=1.0)(two(path), path, grid)
    np.testing.assert_allclose(apg(x, t), rule("cfg")(two(path), path, grid)(x, t), atol=1e-5)


@pytest.mark.first
@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_rule_works_with_every_solver(case):
    """By tracing, which is where memory could leak or shapes and dtypes change."""
    path, built = PATHS["linear"], solver(*case)
    grid = uniform(path, 4)
    for name in config.names("sampling.guidance"):
        guided = rule(name)(two(path), path, grid)

        def run(x, guided=guided):
            return sample(KEY, guided, path, built, grid, x)

        x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
        if (case[0], name) == ("diffrax_adaptive", "apg"):
            with pytest.raises(UserError, match="momentum"):
                jax.eval_shape(run, x)
        else:
            out = jax.eval_shape(run, x)
            assert (out.shape, out.dtype) == (SHAPE, jnp.bfloat16)


@pytest.mark.parametrize("channels", [4, 8])
def test_both_estimates_come_from_one_call(channels):
    """The pair of a network is that of two separate calls, with and without its condition."""
    path = PATHS["linear"]
    process = Process(path, config.resolve("diffusion.predictions", "velocity"))
    batches = []

    def apply_fn(params, x, t, cond):
        batches.append(x.shape[0])
        shift = jnp.where(cond.drop, params["null"], cond.label.astype(x.dtype))
        out = jnp.tanh(x + match_time(shift * t, x) + jnp.mean(cond.context, (1, 2))[0])
        return jnp.concatenate([out] * (channels // x.shape[-1]), axis=-1)

    params = {"null": jnp.asarray(-2.0)}
    cond = Cond(label=jnp.arange(3), context=jnp.ones((3, 2, 2)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    t = jnp.asarray([0.2, 0.5, 1.0])
    both = paired(process, apply_fn, params, cond).both(x, t)
    assert batches == [6]
    kept = cond.replace(drop=jnp.zeros((3,), bool))
    for got, wanted in zip(both, (kept, cond.null(3)), strict=True):
        x_0, v = denoiser(process, apply_fn, params, wanted).full(x, t)
        np.testing.assert_allclose(got[0], x_0, atol=1e-6)
        assert (got[1] is None) == (v is None) == (channels == 4)
        if v is not None:
            np.testing.assert_allclose(got[1], v, atol=1e-6)
    with pytest.raises(UserError, match="label or context"):
        paired(process, apply_fn, params, Cond())
