"""Grids with times for each part of a sample: each goes its own way, and what is known is held."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import CASES, NEED_TIMES, PATHS, cases, chosen, solver

from dit import config
from dit.diffusion.process import Process, denoiser
from dit.sampling.denoisers import pair
from dit.sampling.edit import reveal, whole_patches
from dit.sampling.nfe import nfe
from dit.sampling.sample import sample, sample_keys, solve
from dit.sampling.solver import at
from dit.types import Cond, UserError, match_time

SHAPE, STEPS = (2, 2, 1, 2, 3), 4
KEYS = sample_keys(jax.random.key(0), SHAPE[0])
EVEN = jnp.linspace(1, 0, STEPS + 1)
BENT = EVEN**1.5
WAITS = jnp.concatenate(
    [EVEN[:1], EVEN[:3], EVEN[2:3], EVEN[3:]]
)  # at the first node and the third
ENDS = jnp.concatenate([EVEN, EVEN[-1:], EVEN[-1:]])
NOISE = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


def network(theta, x, t):
    """An estimate of each number by itself and its time, so that parts do not see each other."""
    return jnp.tanh(theta[0] * x) + theta[1] * jnp.cos(2 * x + match_time(t, x))


def frames(*grids):
    """``(nodes, b, f)``: a grid for each frame."""
    return jnp.broadcast_to(jnp.stack(grids, -1)[:, None], (len(grids[0]), 2, 2))


def pixels(grid):
    """``(nodes, b, f, h, w)`` of ``(nodes,)`` or of ``frames``."""
    grid = grid.reshape(grid.shape + (1,) * (5 - grid.ndim))
    return jnp.broadcast_to(grid, (len(grid), *SHAPE[:4]))


@functools.cache
def compiled(index, gradient=False):
    """``run(path name, grid) -> (x_0, its gradient for the noise and the parameters)``, each compiled
    once for all paths where the solver allows it."""
    case, theta = CASES[index], jnp.asarray([0.7, 0.3])
    built = solver(*case)

    def both(path, grid, x):
        def value(theta, x):
            out = sample(KEYS, lambda x, t: network(theta, x, t), path, built, grid, x)
            return jnp.sum(jnp.sin(out + jnp.arange(out.size, dtype=out.dtype).reshape(SHAPE))), out

        if (
            not gradient or built.evaluations is None
        ):  # which has derivatives along a direction only
            return value(theta, x)[1], ()
        slopes, out = jax.grad(value, argnums=(0, 1), has_aux=True)(theta, x)
        return out, slopes

    one = jax.jit(lambda which, grid, x: both(chosen(which), grid, x))
    each = {name: jax.jit(lambda grid, x, p=path: both(p, grid, x)) for name, path in PATHS.items()}

    def run(name, grid, x=NOISE):
        if case[0] in NEED_TIMES:
            return each[name](grid, x)
        return one(list(PATHS).index(name), grid, x)

    return run, [name for name in PATHS if case[0] not in NEED_TIMES or name == "linear"]


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_every_part_goes_its_own_way(case, cheap_noise):
    """One grid for all is the grid of each; a grid a frame is a run of each frame alone; value and
    gradient."""
    run, paths = compiled(CASES.index(case), gradient=True)
    exact = 3e-3 if case[0] == "diffrax_adaptive" else 2e-5
    for name in paths:
        alone, bent = run(name, EVEN), run(name, BENT)
        same, own = run(name, pixels(EVEN)), run(name, pixels(frames(EVEN, BENT)))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=exact), same, alone
        )
        np.testing.assert_allclose(own[0][:, 0], alone[0][:, 0], atol=exact, err_msg=name)
        np.testing.assert_allclose(own[0][:, 1], bent[0][:, 1], atol=exact, err_msg=name)
        known = run(name, pixels(frames(EVEN, 0 * EVEN)))
        np.testing.assert_array_equal(known[0][:, 1], NOISE[:, 1])
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(known)), name
        if own[1]:  # not adaptive: it comes to one result by any grid
            assert np.abs(own[0][:, 1] - alone[0][:, 1]).max() > 10 * exact, name
            np.testing.assert_allclose(own[1][1][:, 0], alone[1][1][:, 0], rtol=1e-4, atol=exact)
            np.testing.assert_allclose(own[1][1][:, 1], bent[1][1][:, 1], rtol=1e-4, atol=exact)


@pytest.mark.first
@pytest.mark.parametrize("case", cases())
def test_what_waits_or_is_known_is_held(case, cheap_noise):
    """The first frame ends early, the second waits; then the second is known from the start."""
    run, paths = compiled(CASES.index(case))
    exact, stochastic = (
        (3e-3 if case[0] == "diffrax_adaptive" else 2e-5),
        solver(*case).order is None,
    )
    for name in paths:
        alone = run(name, EVEN)
        held = run(name, pixels(frames(ENDS, WAITS)))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(held)), name
        np.testing.assert_allclose(held[0][:, 0], alone[0][:, 0], atol=exact, err_msg=name)
        if not stochastic:  # its noise is that of other steps
            np.testing.assert_allclose(held[0][:, 1], alone[0][:, 1], atol=exact, err_msg=name)
        known = run(name, pixels(frames(ENDS, 0 * ENDS)))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(known)), name
        np.testing.assert_array_equal(known[0][:, 1], NOISE[:, 1])
        np.testing.assert_allclose(known[0][:, 0], alone[0][:, 0], atol=exact, err_msg=name)


@pytest.mark.first
@pytest.mark.parametrize("case", cases())
def test_the_network_sees_what_is_known_clean(case, cheap_noise):
    """At every evaluation: the data bit for bit and t = 0 there, as often as is reported."""
    path, built = PATHS["linear"], solver(*case)
    mask = jnp.broadcast_to(jnp.arange(2)[None, None, None] == 1, SHAPE[:4])
    data, calls = 3 + NOISE, []

    def denoise(x, t):
        def look(x, t):
            calls.append(1)
            np.testing.assert_array_equal(x[:, :, :, 1], data[:, :, :, 1])
            assert t.shape == SHAPE[:4]
            assert not t[..., 1].any()
            assert t[..., 0].all()

        jax.debug.callback(look, x, t)
        return jnp.tanh(x)

    grid, x = reveal(EVEN, NOISE, data, mask)
    solution = jax.jit(
        lambda x: solve(KEYS, denoise, path, built, grid, x).replace(trajectory=None)
    )(x)
    jax.effects_barrier()
    np.testing.assert_array_equal(solution.x_0[:, :, :, 1], data[:, :, :, 1])
    assert len(calls) == int(solution.evaluations)


def test_clean_frames_are_tokens_that_are_clean_all_over():
    mask = jnp.asarray([[True, False]])
    by_frame = reveal(EVEN, NOISE, 3 + NOISE, jnp.broadcast_to(mask, SHAPE[:2]))
    each = reveal(EVEN, NOISE, 3 + NOISE, jnp.broadcast_to(mask[..., None, None], SHAPE[:4]))
    assert by_frame[0].shape == (len(EVEN), *SHAPE[:2])
    np.testing.assert_array_equal(by_frame[0][..., None, None] + 0 * each[0], each[0])
    np.testing.assert_array_equal(by_frame[1], each[1])


@pytest.mark.first
@pytest.mark.parametrize("prediction", config.names("diffusion.predictions"))
@pytest.mark.parametrize("path", PATHS)
def test_the_estimate_of_clean_data_is_itself(path, prediction):
    """Whatever the network says there, with a gradient that is finite."""
    try:
        process = Process(PATHS[path], config.resolve("diffusion.predictions", prediction))
    except UserError:
        return  # undefined on this path: refused
    t = jnp.asarray([[0.0, 0.6], [0.3, 0.0]]) * process.path.t_max

    def estimate(theta, x):
        def apply_fn(theta, x, t, cond):
            return theta * x + match_time(jnp.cos(t), x)

        return denoiser(process, apply_fn, theta, Cond())(x, t)

    out = estimate(0.3, NOISE)
    for i, j in ((0, 0), (1, 1)):
        np.testing.assert_array_equal(out[i, j], NOISE[i, j])
    one = denoiser(process, lambda p, x, t, c: 0.3 * x + match_time(jnp.cos(t), x), {}, Cond())
    np.testing.assert_allclose(out[0, 1], one(NOISE[:, 1:], t[:, 1])[0, 0], rtol=1e-5, atol=1e-5)
    grads = jax.grad(lambda *a: estimate(*a).sum(), argnums=(0, 1))(0.3, NOISE)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", config.names("sampling.guidance"))
def test_guidance_is_the_same_for_times_a_sample_and_a_token(name):
    path = PATHS["linear"]
    rule = config.resolve("sampling.guidance", name, scale=0.6 if name == "cfgpp" else 3.0)
    theta = jnp.asarray([0.7, 0.3])
    both = pair(lambda x, t: network(theta, x, t), lambda x, t: network(0.5 * theta, x, t))
    t = jnp.asarray([0.9, 0.4])
    each = jnp.broadcast_to(t[:, None, None, None], SHAPE[:4])
    wanted = rule(both, path, EVEN)(NOISE, t)
    for grid in (EVEN, pixels(EVEN)):
        np.testing.assert_allclose(
            rule(both, path, grid)(NOISE, each), wanted, rtol=1e-5, atol=1e-6
        )
    own = pixels(frames(EVEN, 0 * EVEN))
    times = each.at[:, 1].set(0)
    held = rule(both, path, own)(NOISE, times)
    assert jnp.isfinite(held).all()
    if name not in ("apg",):  # which looks at a whole sample
        np.testing.assert_allclose(held[:, 0], wanted[:, 0], rtol=1e-5, atol=1e-6)
    assert nfe(solver("heun", {}), STEPS, rule, path=path, grid=own) == nfe(
        solver("heun", {}), STEPS, rule, path=path, grid=EVEN
    )


def test_a_node_is_told_as_the_shortest_prefix():
    x = jnp.zeros(SHAPE)
    for shape, wanted in (
        ((), (2,)),
        ((2, 1, 1, 1, 1), (2,)),
        ((2, 2, 1, 1, 1), (2, 2)),
        ((2, 1, 1, 2, 1), (2, 2, 1, 2)),
    ):
        assert at(jnp.zeros(shape), x).shape == wanted
    for wrong in ((5, 3), (5, 2, 3), (1, 2), (5, *SHAPE)):
        with pytest.raises(UserError, match="got a time grid of shape"):
            sample(KEYS, jnp.tanh, PATHS["linear"], solver("ddim", {}), jnp.zeros(wrong), x)


def test_only_patches_that_are_known_as_a_whole_are_clean():
    mask = jnp.ones((1, 2, 4, 4, 2), bool).at[0, 0, 0, 3, 1].set(False)
    found = whole_patches(mask, (1, 2, 2))
    assert found.shape == (1, 2, 4, 4)
    assert (~found).sum() == 4
    assert not found[0, 0, :2, 2:].any()
