"""Frame-causal models: nothing of a later frame, neither its data nor its time, reaches an earlier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import BLOCKS, abstract, inputs, params_of, quick, tiny

from dit import models
from dit.models.patchify import patchify, positions
from dit.types import Cond, Tokens, UserError

SHAPE = (4, 4, 4, 3)
FRAMES = jnp.repeat(jnp.arange(4), 4)[None]  # of the tokens of one clip, with patches of one frame


def tokens_of(x, patch, **fields):
    return Tokens(x=patchify(x, patch), position=positions(x.shape[1:4], patch), **fields)


def frames_of(x, patch):
    count = x.shape[1] // patch[0]
    each = patchify(x, patch).shape[1] // count
    return jnp.broadcast_to(jnp.repeat(jnp.arange(count), each)[None], (len(x), count * each))


def call(model, params, x, t, cond):
    return patchify(models.apply_fn(model)(params, x, t, cond), model.patch)


def transform(model, params, x, t, cond):
    """The entrance for tokens of any origin, told the frame of each; and with them out of order."""
    frame = frames_of(x, model.patch)
    tokens = tokens_of(x, model.patch, frame=frame)
    order = np.random.default_rng(0).permutation(frame.shape[1])
    tokens = tokens.replace(
        x=tokens.x[:, order], position=tokens.position[:, order], frame=frame[:, order]
    )
    if t.ndim == 2:
        tokens = tokens.replace(row=tokens.frame)
    out = model.apply({"params": params}, tokens, t, cond, method="transform")
    return out[:, np.argsort(order)]


CASES = [(block, entrance, "cpu", 1) for block in BLOCKS for entrance in (call, transform)]
CASES += [("in_context", transform, "xla", 1), ("in_context", call, "ring", 1)]
CASES += [("in_context", transform, "ring", 1)]
CASES += [("cross_attention", call, "cpu", 2), ("adaln_zero", call, "xla", 2)]


@pytest.mark.first
@pytest.mark.parametrize(("block", "entrance", "kernel", "patch"), CASES)
def test_nothing_of_a_later_frame_reaches_an_earlier_one(block, entrance, kernel, patch):
    model = tiny(block, frame_causal=True, attention=kernel, patch=(patch, 2, 2))
    params = params_of(model, SHAPE)
    x, t, cond = inputs(shape=SHAPE)
    t = t[:, None] + 0.1 * jnp.arange(4.0)[None]
    early = 8 // patch  # tokens of the first two frames
    later = jnp.arange(4) >= 2

    @quick
    def run(x, t):
        def value(x, t):
            out = entrance(model, params, x, t, cond)
            return (out[:, :early] * jnp.arange(1.0, early + 1)[None, :, None]).sum(), out

        return jax.grad(value, argnums=(0, 1), has_aux=True)(x, t)

    (by_x, by_t), out = run(x, t)
    assert not np.any(by_x[:, 2:])
    assert not np.any(by_t[:, 2:])
    assert np.any(by_x[:, :2])
    assert np.any(by_t[:, :2])
    moved_x = run(x + later[None, :, None, None, None], t)[1]
    moved_t = run(x, t + 0.5 * later[None])[1]
    for moved in (moved_x, moved_t):
        np.testing.assert_array_equal(moved[:, :early], out[:, :early])
        assert np.abs(moved[:, early:] - out[:, early:]).max() > 1e-4


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_nothing_of_a_later_frame_comes_through_any_other_entrance(block):
    """Times of tokens, the second time and known channels; what a whole clip is told reaches all."""
    whole = {"pooled_dim": 3, "guidance_input": True, "context_dim": 7}
    options = {"second_time": True, "concat_channels": 2, **whole}
    model = tiny(block, depth=1, frame_causal=True, attention="xla", **options)
    params = params_of(model, SHAPE)
    x, t, cond = inputs(shape=SHAPE, context=2)
    draw = np.random.default_rng(3)
    clip = {"pooled": jnp.ones((2, 3)), "guidance": 2 * t}
    frames = {
        "t": jnp.broadcast_to(t[:, None, None, None], x.shape[:4]) + 0.1 * x.mean(-1),
        "r": jnp.asarray(0.3 * draw.random(x.shape[:4]), jnp.float32),
        "concat": jnp.asarray(draw.standard_normal((*x.shape[:4], 2)), jnp.float32),
    }

    @quick
    def slopes(frames, clip):
        def early(frames, clip):
            told = cond.replace(r=frames["r"], concat=frames["concat"], **clip)
            out = models.apply_fn(model)(params, x, frames["t"], told)[:, :2]
            return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

        return jax.grad(early, argnums=(0, 1))(frames, clip)

    by_frame, by_clip = slopes(frames, clip)
    for name, slope in by_frame.items():
        assert not np.any(slope[:, 2:]), name
        assert np.any(slope[:, :2]), name
    assert all(np.any(slope) for slope in by_clip.values())


@pytest.mark.first
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_both_entrances_are_one_function(block, per_frame):
    model = tiny(block, frame_causal=True, attention="xla")
    params, (x, t, cond) = params_of(model, SHAPE), inputs(shape=SHAPE)
    if per_frame:
        t = t[:, None] + 0.1 * jnp.arange(4.0)[None]
    found = [
        quick(functools.partial(entrance, model, params))(x, t, cond)
        for entrance in (call, transform)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=2e-5)


@pytest.mark.first
@pytest.mark.parametrize("kernel", ["cpu", "xla", "ring"])
def test_packed_clips_are_the_clips_alone(kernel):
    """Two clips in one row, told apart by segments: each token sees its clip, up to its frame."""
    model = tiny("adaln_zero", frame_causal=True, attention=kernel, num_classes=None)
    params, (x, t, _) = params_of(model, SHAPE), inputs(shape=SHAPE)
    t = t[:, None] + 0.1 * jnp.arange(4.0)[None]
    rows = patchify(x, model.patch)
    wave = jnp.cos(jnp.arange(rows.size, dtype=rows.dtype)).reshape(rows.shape)
    place = positions(SHAPE[:3], model.patch)
    packed = Tokens(
        x=rows.reshape(1, 32, -1),
        position=jnp.concatenate([place, place], axis=1),
        segment=jnp.repeat(jnp.arange(2), 16)[None],
        frame=jnp.concatenate([FRAMES, 4 + FRAMES], axis=1),
        row=jnp.concatenate([FRAMES, 4 + FRAMES], axis=1),
    )

    def separate(params, x, t):
        out = call(model, params, x, t, Cond())
        return (out * wave).sum(), out

    def together(params, rows, t):
        tokens = packed.replace(x=rows.reshape(1, 32, -1))
        out = model.apply({"params": params}, tokens, t.reshape(1, 8), Cond(), method="transform")
        return (out.reshape(wave.shape) * wave).sum(), out.reshape(wave.shape)

    slopes = functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    (by_params, by_x, by_t), alone = quick(slopes(separate))(params, x, t)
    found, out = quick(slopes(together))(params, rows, t)
    np.testing.assert_allclose(out, alone, atol=2e-5)
    wanted = by_params, patchify(by_x, model.patch), by_t
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), found, wanted)


def test_a_mask_that_cannot_be_made_is_refused():
    x, t, _ = inputs(shape=SHAPE)
    model = tiny(frame_causal=True, num_classes=None)
    params = abstract(model, SHAPE)

    def shape_of(model, tokens):
        apply = functools.partial(model.apply, method="transform")
        return jax.eval_shape(lambda p: apply({"params": p}, tokens, t, Cond()), params)

    with pytest.raises(UserError, match=r"give Tokens\.frame"):
        shape_of(model, tokens_of(x, model.patch))
    framed = tokens_of(x, model.patch, frame=jnp.concatenate([FRAMES, FRAMES]))
    with pytest.raises(UserError, match="attention='ring'"):
        shape_of(model.clone(attention="splash"), framed)
