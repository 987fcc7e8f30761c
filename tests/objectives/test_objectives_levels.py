"""Noise levels a sample, a frame and a token, and tokens that are known: where they are one loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, rng
from dit.config import resolve
from dit.diffusion.process import Process, corrupt, network_input, target
from dit.diffusion.times import at, uniform
from dit.types import Cond, UserError, match_time, repeat_patches

SHAPE, PATCH = (2, 4, 4, 2), (1, 2, 2)
KEY = jax.random.key(3)
NAMES = [config.names(f"diffusion.{room}") for room in ("paths", "predictions")]


def processes():
    for names in itertools.product(*NAMES):
        try:
            rooms = ("diffusion.paths", "diffusion.predictions")
            process = Process(*(resolve(r, n) for r, n in zip(rooms, names, strict=True)))
        except UserError:
            continue  # undefined on this path: refused
        yield pytest.param(process, id="-".join(names))


def loss_of(weight="none", **kwargs):
    rooms = {"times": "uniform", "weight": weight}
    built = {k: resolve(f"diffusion.{k.rstrip('s')}s", v) for k, v in rooms.items()}
    return resolve("objectives", "denoise", **built, **kwargs)


def batch_of(n=3, shape=SHAPE, **more):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, *shape)), jnp.float32)
    return {"x": x, "id": jnp.arange(n, dtype=jnp.int32), **more}


def network(theta, x, t, cond):
    return theta * jnp.tanh(x) + 0.1 * match_time(jnp.cos(t), x)


def graded(loss, process, batch, apply_fn=network):
    value = lambda theta: loss(KEY, theta, apply_fn, process, batch)[::-1]  # noqa: E731

    def both(theta):
        metrics, total = value(theta)
        return total, metrics

    return jax.value_and_grad(both, has_aux=True)(jnp.float32(0.7))


@pytest.mark.first
@pytest.mark.parametrize("process", list(processes()))
def test_levels_are_one_where_there_is_one_token(process):
    """A sample of one frame that is one token: the same loss and gradient, whatever has a level."""
    batch = batch_of(shape=(1, 4, 4, 2))
    wanted = graded(loss_of(patch=(1, 4, 4)), process, batch)
    for level in ("frame", "token"):
        found = graded(loss_of(level=level, patch=(1, 4, 4)), process, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


@pytest.mark.first
@pytest.mark.parametrize("process", list(processes()))
def test_the_process_is_one_function_of_times_of_any_prefix(process):
    """Value, and gradient for the data, with times a sample, a frame and a token that coincide."""
    draw = np.random.default_rng(0)
    x, eps = (jnp.asarray(draw.normal(size=(2, *SHAPE)), jnp.float32) for _ in range(2))
    path = process.path
    t = path.t_min + (path.t_max - path.t_min) * jnp.asarray([0.3, 0.8])
    weights = [resolve("diffusion.weights", name) for name in config.names("diffusion.weights")]

    def everything(x, t):
        x_t = corrupt(process, x, eps, t)
        told, noise = network_input(process, x_t, t)
        s = match_time(t, x)
        ones = jnp.ones_like(s)
        scaled = [w(process, s, ones) * target(process, x, eps, t) for w in weights]
        parts = [x_t, told, told * match_time(noise, x), *scaled]
        return sum(jnp.sin(part + i).sum() for i, part in enumerate(parts)), parts

    slope = jax.grad(everything, has_aux=True)
    wanted = slope(x, t)
    for n in (2, 3, 4):
        each = jnp.broadcast_to(t.reshape(2, *[1] * (n - 1)), x.shape[:n])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            slope(x, each),
            wanted,
        )


def weighted():
    """Every process without a weight, and every weight on two of them."""
    for case in processes():
        names = config.names("diffusion.weights")
        for weight in names if case.id in ("linear-velocity", "edm-edm_f") else ["none"]:
            yield pytest.param(*case.values, weight, id=f"{case.id}-{weight}")


@pytest.mark.first
@pytest.mark.parametrize(("process", "weight"), list(weighted()))
def test_known_tokens_are_clean_and_have_no_loss(process, weight):
    """The network is given them at t = 0, bit for bit; the loss and its gradient are those of the
    others alone, also where a target or a weight is infinite at t = 0."""
    known = jnp.zeros((3, *SHAPE[:3]), bool).at[:, 0].set(True).at[:, 1, :2, 2:].set(True)
    batch = batch_of(known=known)
    loss = loss_of(weight, level="token", tasks=("data",), patch=PATCH)
    seen = []

    def apply_fn(theta, x, t, cond):
        seen.append((x, t))
        return jnp.where(known[..., None], 1e3, 1) * network(theta, x, t, cond)

    (total, _), slope = graded(loss, process, batch, apply_fn)
    x, t = seen[0]
    clean = network_input(process, batch["x"], jnp.zeros(x.shape[:4]))
    np.testing.assert_array_equal(np.asarray(jax.lax.stop_gradient(x))[known], clean[0][known])
    np.testing.assert_array_equal(t[known], clean[1][known])
    assert (t[~known] != clean[1][0, 0, 0, 0]).all()

    def by_hand(theta):
        eps, t, w = draws(process, weight, batch)
        told, noise = network_input(process, corrupt(process, batch["x"], eps, t), t)
        told = jnp.where(known[..., None], clean[0], told)
        out = network(theta, told, jnp.where(known, clean[1], noise), Cond())
        error = w * jnp.square(out - target(process, batch["x"], eps, t))
        return jnp.mean(jnp.stack([e[~k].mean() for e, k in zip(error, known, strict=True)]))

    value, gradient = jax.value_and_grad(by_hand)(jnp.float32(0.7))
    np.testing.assert_allclose(total, value, rtol=2e-5)
    np.testing.assert_allclose(slope, gradient, rtol=2e-5)


def draws(process, weight, batch):
    """The noise, the times and the weights of a token level, as the streams give them."""
    keys = {n: rng.per_sample(rng.stream(KEY, n), batch["id"]) for n in ("noise", "time")}
    u = rng.uniform(keys["time"], (2, 2, 2))
    t, density = (repeat_patches(a, PATCH) for a in at(process.path, uniform.build(), u))
    s = match_time(t, batch["x"])
    w = resolve("diffusion.weights", weight)(process, s, match_time(density, batch["x"]))
    return rng.normal(keys["noise"], SHAPE), t, w


def test_a_share_of_the_tokens_is_known_and_frames_or_samples_may_have_the_levels():
    process = Process(resolve("diffusion.paths", "linear"), resolve("diffusion.predictions", "v"))
    for level in ("sample", "frame", "token"):
        seen = []

        def apply_fn(theta, x, t, cond, seen=seen):
            seen.append((x, t))
            return theta * x

        batch = batch_of(200)
        loss_of(level=level, tasks=("tokens:share=0.25",), patch=PATCH)(
            KEY, 1.0, apply_fn, process, batch
        )
        x, t = seen[0]
        each = np.asarray(t).reshape(200, 2, 2, 2, 2, 2)
        np.testing.assert_array_equal(each, each[:, :, :, :1, :, :1] + 0 * each)
        known = each[:, :, :, 0, :, 0] == 0
        assert abs(known.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / known.size)
        np.testing.assert_array_equal(x[t == 0], batch["x"][t == 0])
        levels = {len(np.unique(row[row > 0])) for row in np.asarray(t)}
        assert max(levels) == {"sample": 1, "frame": 2, "token": 8}[level]


def test_a_mask_and_an_option_that_do_not_fit_are_refused():
    process = Process(resolve("diffusion.paths", "linear"), resolve("diffusion.predictions", "v"))
    known = jnp.zeros((3, *SHAPE[:3]), bool)
    for option, batch in (
        ((), batch_of(known=known)),
        (("data",), batch_of()),
        (("tokens",), batch_of(known=known)),
    ):
        with pytest.raises(UserError, match=r"got objective\.tasks="):
            loss_of(tasks=option)(KEY, 1.0, network, process, batch)
    for bad in ({"level": "pixel"}, {"tasks": ("tokens:share=1.5",)}, {"tasks": ("some",)}):
        with pytest.raises(UserError, match=r"expected"):
            loss_of(**bad)
