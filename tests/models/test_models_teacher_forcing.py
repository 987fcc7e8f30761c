"""Teacher forcing is the loss of every block in a pass of its own, after its clean past."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import params_of, quick, tiny

from dit import models, rng
from dit.config import resolve
from dit.diffusion.process import Process, corrupt, network_input, target
from dit.diffusion.times import draw
from dit.models.attention import Visibility
from dit.models.kernels import cpu, ring, xla
from dit.objectives import teacher_forcing
from dit.scaling.jaxpr_flops import count_flops
from dit.types import Cond, UserError

KEY = jax.random.key(3)
SIDES, PATCH = (4, 4), (1, 2, 2)
OPTIONS = {"frame_causal": True, "positions": "rope", "attention": "xla", "patch": PATCH}


def parts(name="velocity"):
    times, weight = resolve("diffusion.times", "uniform"), resolve("diffusion.weights", "none")
    process = Process(resolve("diffusion.paths", "linear"), resolve("diffusion.predictions", name))
    return times, weight, process


def batch_of(frames, **more):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, frames, *SIDES, 3)), jnp.float32)
    return {"x": x, "id": jnp.arange(2, dtype=jnp.int32), "label": jnp.array([1, 4]), **more}


def apart(model, process, times, batch, block, dropout):
    """The loss as a function of the parameters: each block in a clip of its own, after its clean past.

    What comes after it is noise: it cannot be seen.
    """
    x_0, ids, pt = batch["x"], batch["id"], model.patch[0]
    keys = {n: rng.per_sample(rng.stream(KEY, n), ids) for n in ("noise", "dropout")}
    eps, frames = rng.normal(keys["noise"], x_0.shape[1:]), x_0.shape[1]
    starts = range(0, frames // pt, block)
    t, _ = draw(rng.stream(KEY, "time"), ids, process.path, times, levels=(len(starts),))
    cond = Cond.of(batch, rng.uniform(keys["dropout"]) < dropout)
    clips, levels, own = [], [], []
    for i, start in enumerate(starts):
        first, end = start * pt, min((start + block) * pt, frames)
        past, level = jnp.arange(frames) < first, jnp.broadcast_to(t[:, i : i + 1], (2, frames))
        level = jnp.where(past[None], 0, level)
        noisy = corrupt(process, x_0, eps, level)
        clips.append(jnp.where(past[None, :, None, None, None], x_0, noisy).at[:, end:].set(7.0))
        levels.append(level)
        own.append(
            jnp.broadcast_to(
                (jnp.arange(frames) >= first) & (jnp.arange(frames) < end), (2, frames)
            )
        )
    x, t, own = (jnp.concatenate(each) for each in (clips, levels, own))
    data, noise = (jnp.concatenate([a] * len(starts)) for a in (x_0, eps))
    cond = jax.tree.map(lambda a: jnp.concatenate([a] * len(starts)), cond)

    def loss(params):
        out = models.apply_fn(model)(params, *network_input(process, x, t), cond)
        error = jnp.square(out - target(process, data, noise, t)).mean((2, 3, 4))
        return jnp.where(own, error, 0).sum() / (2 * frames)

    return loss


CASES = [
    ("modern", 4, 1, {}, ()),
    ("adaln_cross", 5, 2, {"context_dim": 7, "concat_channels": 2}, ("context", "concat")),
    ("adaln_zero", 6, 2, {"patch": (2, 2, 2)}, ()),
]


@pytest.mark.first
@pytest.mark.parametrize(("block", "frames", "size", "more", "told"), CASES)
def test_it_is_the_loss_of_each_block_by_itself(block, frames, size, more, told):
    """Values and gradients, of whole blocks and of a shorter last one, with all that is told."""
    model, noise = tiny(block, **OPTIONS | more), np.random.default_rng(2)
    sizes = {"context": (2, 3, 7), "concat": (2, frames, *SIDES, 2)}
    given = {name: jnp.asarray(noise.normal(size=sizes[name]), jnp.float32) for name in told}
    batch = batch_of(frames, **given)
    times, weight, process = parts()
    params = params_of(model, batch["x"].shape[1:], 0.1)
    about = {"model": model, "block": size, "condition_dropout": 0.5, "patch": model.patch}
    loss = teacher_forcing.build(times=times, weight=weight, **about)

    @quick
    def both(params):
        whole = jax.value_and_grad(
            lambda p: loss(KEY, p, models.apply_fn(model), process, batch), has_aux=True
        )(params)
        return whole, jax.value_and_grad(apart(model, process, times, batch, size, 0.5))(params)

    ((total, metrics), grads), (value, expected) = both(params)
    np.testing.assert_allclose(total, value, rtol=2e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 + 2e-5 * np.abs(other).max())
    assert metrics["loss"].shape == metrics["t"].shape == (2,)


def test_a_token_sees_what_it_would_in_a_clip_of_its_own_with_every_kernel():
    """Written out: (is it noisy, frame) of queries and keys, in blocks of 2 of 5 frames."""
    clip = jnp.zeros((1, 5, 2, 1, 1))
    tokens, grid = teacher_forcing.rows(clip, clip, (1, 2, 1), 2)
    assert grid == (5, 1, 1)
    visible = Visibility(q_frame=tokens.frame, k_frame=tokens.frame).replace(
        q_group=tokens.group, k_group=tokens.group
    )
    each = [(noisy, f) for noisy in (False, True) for f in range(5)]

    def sees(query, key):
        (noisy, f), (k_noisy, g) = query, key
        if not noisy:
            return not k_noisy and g <= f
        return f // 2 * 2 <= g <= f if k_noisy else g < f // 2 * 2

    expected = np.array([[sees(query, key) for key in each] for query in each])
    np.testing.assert_array_equal(visible.dense(10, 10)[0], expected)
    q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 10, 2, 4)), jnp.float32)
    outs = [kernel.attend(q, k, v, visible) for kernel in (xla, cpu, ring)]
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], atol=1e-6)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2)])
def test_multiply_adds_are_those_of_the_program(patch):
    model = tiny("adaln_zero", **OPTIONS | {"patch": patch})
    times, weight, process = parts()
    batch = batch_of(4)
    loss = teacher_forcing.build(times=times, weight=weight, model=model, block=2, patch=patch)
    shape = batch["x"].shape[1:]
    params = jax.eval_shape(lambda: params_of(model, shape))

    def run(params):
        return loss(KEY, params, models.apply_fn(model.plain(unrolled=True)), process, batch)[0]

    counted = count_flops(run, params)
    assert counted == 2 * 2 * sum(model.macs(shape, level="forced").values())  # of two examples


def test_networks_and_batches_that_do_not_fit_say_why():
    times, weight, process = parts()

    def build(model, **more):
        return teacher_forcing.build(times=times, weight=weight, model=model, **more)

    with pytest.raises(UserError, match="frame_causal=False"):
        build(tiny("modern", **OPTIONS | {"frame_causal": False}))
    with pytest.raises(UserError, match="block='in_context'"):
        build(tiny("in_context", **OPTIONS))
    unet = resolve("models", "unet", size="DDPM-32", in_channels=3)
    with pytest.raises(UserError, match="UNet cannot be trained by teacher_forcing"):
        build(unet)
    model = tiny("modern", **OPTIONS)
    loss = build(model, patch=PATCH)
    odd = batch_of(4, known=jnp.ones((2, 4, *SIDES), bool))
    with pytest.raises(UserError, match=r"batches with \['known'\]"):
        loss(KEY, None, models.apply_fn(model), process, odd)
