"""Every solver, on every path and grid: finite, landing on data, counted, one loop, one compile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import NEED_TIMES, PATHS, cases, chosen, solver

from dit import config
from dit.sampling.edit import image_to_image, inpaint
from dit.sampling.nfe import nfe
from dit.sampling.sample import initial_noise, sample, sample_keys, solve
from dit.types import UserError, match_time

STEPS, SHAPE = 6, (2, 1, 2, 2, 3)
KEYS = sample_keys(jax.random.key(0), SHAPE[0])


def gaussian(path, mean=0.3, spread=0.5):
    """The exact denoiser for data from one Gaussian, in the dtype of its input."""

    def denoise(x, t):
        s = match_time(t, x)
        alpha, sigma = path.alpha(s), path.sigma(s)
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return (mean + gain * (x - alpha * mean)).astype(x.dtype)

    return denoise


@functools.cache
def grids(path_name):
    """Every grid on this path, made once: those in log-SNR compile a bisection."""
    path, made = PATHS[path_name], {}
    for name in config.names("sampling.grids"):
        if name != "ddpm" or path.timesteps is not None:
            # A large variance at a step to almost no noise leaves what no later step can take away.
            kwargs = {"shifted": {"shift": 3.0}, "linspace": {"last": 0.2}}.get(name, {})
            made[name] = config.resolve("sampling.grids", name, **kwargs)(path, STEPS)
    return made


def each_and_where():
    """The solvers, and the paths tried with those that need a compilation for each: all is slow."""
    for made in cases():
        (case,) = made.values
        yield pytest.param(case, ("linear",), id=made.id, marks=made.marks)
        if case[0] in NEED_TIMES:
            yield pytest.param(case, tuple(PATHS), id=f"{made.id}-all", marks=pytest.mark.slow)


@pytest.mark.first
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("case", "alone"), list(each_and_where()))
def test_finite_at_both_ends_of_every_path(case, alone, dtype, cheap_noise):
    """From noise at t_max to data at 0, on every grid; and about where the data are."""
    built = solver(*case)

    def run(path, x, grid):
        return solve(KEYS, gaussian(path), path, built, grid, x, trajectory=True).trajectory

    one_for_all = jax.jit(lambda which, *args: run(chosen(which), *args))
    each = {name: jax.jit(lambda *args, p=path: run(p, *args)) for name, path in PATHS.items()}
    for which, (name, path) in enumerate(PATHS.items()):
        x_T = initial_noise(KEYS, SHAPE[1:], path, dtype)
        for grid_name, grid in grids(name).items():
            if case[0] not in NEED_TIMES:
                out = one_for_all(which, x_T, grid)
            elif name in alone:
                out = each[name](x_T, grid)
            else:
                continue
            assert out.dtype == dtype, name
            assert jnp.isfinite(out).all(), (name, grid_name)
            assert jnp.abs(out[-1].astype(jnp.float32)).max() < 6, (name, grid_name)
            assert jnp.array_equal(out[0], x_T)


@pytest.mark.first
@pytest.mark.parametrize("case", cases())
def test_edits_work_and_what_is_known_comes_back_exactly(case, cheap_noise):
    path, built = PATHS["linear"], solver(*case)
    known = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    mask = (jnp.arange(SHAPE[3]) == 0)[None, None, None, :, None]
    grid = config.resolve("sampling.grids", "uniform")(path, STEPS)

    @jax.jit
    def run(known):
        x_t, start = image_to_image(KEYS, path, grid, known, 0.5)
        assert start == STEPS // 2
        filled = inpaint(gaussian(path), known, mask)
        return sample(KEYS, filled, path, built, grid, x_t, start=start)

    out = run(known)
    assert jnp.array_equal(out[:, :, :, 0], known[:, :, :, 0])
    assert jnp.isfinite(out).all()
    assert not jnp.allclose(out[:, :, :, 1], known[:, :, :, 1])


@pytest.mark.first
@pytest.mark.parametrize("case", cases())
def test_reported_evaluations_are_those_that_ran(case, cheap_noise):
    path, built = PATHS["linear"], solver(*case)
    grid = config.resolve("sampling.grids", "uniform")(path, STEPS)
    calls = []

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return gaussian(path)(x, t)

    solution = jax.jit(
        lambda x: solve(KEYS, denoise, path, built, grid, x).replace(trajectory=None)
    )(jnp.ones(SHAPE))
    jax.effects_barrier()
    assert len(calls) == int(solution.evaluations)
    if built.evaluations is None:
        with pytest.raises(UserError, match="adaptive"):
            nfe(built, STEPS)
    else:
        assert len(calls) == nfe(built, STEPS) == len(built.times(path, grid, 0))


@pytest.mark.parametrize("case", cases())
def test_one_loop_whatever_the_number_of_steps(case):
    """The traced program has one size, and one copy of the network for each evaluation of a step."""
    path, built = PATHS["linear"], solver(*case)
    sizes, copies = [], []
    for steps in (3, 50):
        calls = []

        def denoise(x, t, calls=calls):
            calls.append(1)
            return gaussian(path)(x, t)

        grid = jnp.linspace(1, 0, steps + 1)
        jaxpr = jax.make_jaxpr(lambda x, g, d=denoise: sample(KEYS, d, path, built, g, x))(
            jnp.ones(SHAPE), grid
        )
        sizes.append(str(jaxpr).count(" = "))
        copies.append(len(calls))
    assert sizes[0] == sizes[1]
    assert copies[0] == copies[1] <= 6


def test_no_second_compile():
    path, built = PATHS["linear"], solver("heun", {})
    traces = []

    @jax.jit
    def run(key, x, grid):
        traces.append(1)
        return sample(key, gaussian(path), path, built, grid, x)

    for seed in range(3):
        key = jax.random.key(seed)
        x = initial_noise(sample_keys(key, 2), SHAPE[1:], path)
        run(key, x, jnp.linspace(1, 0, 4 + 1) ** (seed + 1))
    assert len(traces) == 1


def test_the_dtype_of_the_noise_is_what_the_network_sees():
    path, seen = PATHS["linear"], []

    def denoise(x, t):
        seen.append((x.dtype, t.dtype, t.shape))
        return x

    grid = jnp.linspace(1, 0, 3)
    out = jax.eval_shape(
        lambda x: sample(KEYS, denoise, path, solver("heun", {}), grid, x),
        jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16),
    )
    assert out.dtype == jnp.bfloat16
    assert set(seen) == {(jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32), (2,))}


def test_noise_has_the_level_of_the_path():
    path = PATHS["edm"]
    x_T = initial_noise(sample_keys(jax.random.key(0), 50), (1, 8, 8, 1), path)
    assert abs(float(x_T.std()) / 80 - 1) < 0.05
    assert not jnp.allclose(x_T[0], x_T[1])


@pytest.mark.parametrize(
    ("key", "grid", "said"),
    [
        (jax.random.PRNGKey(0), jnp.linspace(1, 0, 3), "typed key"),
        (jax.random.split(jax.random.key(0), 3), jnp.linspace(1, 0, 3), "one for each sample"),
        (jax.random.key(0), jnp.ones((1,)), "steps >= 1"),
    ],
)
def test_bad_input_is_refused(key, grid, said):
    with pytest.raises(UserError, match=said):
        sample(key, lambda x, t: x, PATHS["linear"], solver("ddim", {}), grid, jnp.ones(SHAPE))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ddim", {"eta": 1.5}),
        ("ddim", {"eta": float("nan")}),
        ("ddpm", {"variance": "huge"}),
        ("ddpm", {"clip": -1.0}),
        ("unipc", {"order": 4}),
        ("dpmpp_sde", {"order": 1, "variant": "heun"}),
        ("euler_maruyama", {"scale": -1.0}),
        ("edm_stochastic", {"low": 2.0, "high": 1.0}),
        ("diffrax_adaptive", {"rtol": 0.0}),
        ("heun", {"eta": 0.5}),
        ("huen", {}),
    ],
)
def test_bad_options_are_refused(name, kwargs):
    with pytest.raises(UserError):
        solver(name, kwargs)


def test_learned_variance_needs_a_model_that_has_one():
    built = solver("ddpm", {"variance": "learned"})
    with pytest.raises(UserError, match="variance channels"):
        sample(KEYS, lambda x, t: x, PATHS["ddpm"], built, jnp.linspace(1, 0, 3), jnp.ones(SHAPE))


def test_image_to_image_starts_where_it_says():
    path = PATHS["linear"]
    grid = config.resolve("sampling.grids", "uniform")(path, 10)
    x_0 = jnp.ones(SHAPE)
    x_t, start = image_to_image(KEYS, path, grid, x_0, 1.0)
    assert jnp.array_equal(x_t, initial_noise(KEYS, SHAPE[1:], path))
    assert start == 0
    x_t, start = image_to_image(KEYS, path, grid, x_0, 0.3)
    np.testing.assert_allclose(grid[start:], [0.3, 0.2, 0.1, 0], atol=1e-6)
    eps = initial_noise(KEYS, SHAPE[1:], path)
    np.testing.assert_allclose(x_t, 0.7 + 0.3 * eps, atol=1e-6)
    for strength in (0.0, 1.1):
        with pytest.raises(UserError, match="strength"):
            image_to_image(KEYS, path, grid, x_0, strength)
    for start in (-1, 10):
        with pytest.raises(UserError, match="start"):
            sample(KEYS, gaussian(path), path, solver("ddim", {}), grid, x_t, start=start)
    with pytest.raises(UserError, match="mask"):
        inpaint(gaussian(path), x_0, jnp.ones((2, 2), bool))
