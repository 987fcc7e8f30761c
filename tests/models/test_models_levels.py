"""Time as a prefix of x: one function whatever has a level, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import BLOCKS, abstract, inputs, params_of, quick, tiny

from dit import models
from dit.models.patchify import patchify, positions
from dit.types import Cond, Tokens, UserError

SHAPE = (2, 4, 4, 3)
B, F, H, W = 2, *SHAPE[:3]


def token_times(t, patch=(1, 2, 2)):
    """``b f h w``: a time of its own for every token."""
    grid = (F // patch[0], H // patch[1], W // patch[2])
    each = 0.1 + 0.8 * jnp.cos(jnp.arange(B * np.prod(grid), dtype=t.dtype)) ** 2
    for axis, size in enumerate(patch, 1):
        each = each.reshape(B, *grid) if axis == 1 else each
        each = jnp.repeat(each, size, axis=axis)
    return each


@functools.cache
def slopes(model):
    """``(out, gradients)`` for the parameters, x and the time, the last summed over each sample."""
    apply = models.apply_fn(model)

    def value(params, x, t, cond):
        out = apply(params, x, t, cond)
        return (out * jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)).sum(), out

    def run(params, x, t, cond):
        grads, out = jax.grad(value, argnums=(0, 1, 2), has_aux=True)(params, x, t, cond)
        return out, grads[:2], grads[2].reshape(B, -1).sum(1)

    return quick(run)


def close(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, wanted)


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_levels_agree_where_they_coincide(block):
    model = tiny(block, depth=1)
    params, (x, t, cond) = params_of(model, SHAPE), inputs(shape=SHAPE)
    run = slopes(model)
    wanted = run(params, x, t, cond)
    for axes in ((F,), (F, H, W)):
        close(
            run(params, x, jnp.broadcast_to(t.reshape(B, *[1] * len(axes)), (B, *axes)), cond),
            wanted,
        )
    by_frame = t[:, None] + jnp.asarray([[0.0, 0.4]])
    each = jnp.broadcast_to(by_frame[:, :, None, None], (B, F, H, W))
    frames = run(params, x, by_frame, cond)
    close(run(params, x, each, cond), frames)
    assert np.abs(frames[0] - wanted[0]).max() > 1e-3


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_tokens_of_any_origin_have_the_times_of_their_pixels(block):
    """``(b, n)`` in ``transform`` is ``(b, f, h, w)`` of the data; rows say the same."""
    model = tiny(block, depth=1)
    params, (x, t, cond) = params_of(model, SHAPE), inputs(shape=SHAPE)
    each = token_times(t)
    tokens = Tokens(x=patchify(x, model.patch), position=positions(SHAPE[:3], model.patch))
    flat = patchify(each[..., None], model.patch)[..., 0]
    rows = jnp.tile(jnp.arange(flat.shape[1])[None, ::-1], (B, 1))

    @quick
    def run(params, x, each, flat):
        call = functools.partial(model.apply, {"params": params}, method="transform")
        several = tokens.replace(row=rows)
        whole = models.apply_fn(model)(params, x, each, cond)
        return (
            patchify(whole, model.patch),
            call(tokens, flat, cond),
            call(several, flat[:, ::-1], cond),
        )

    whole, by_token, by_row = run(params, x, each, flat)
    np.testing.assert_allclose(by_token, whole, atol=2e-5)
    np.testing.assert_allclose(by_row, whole, atol=2e-5)


@pytest.mark.parametrize("block", ["adaln_zero", "modern"])
def test_tokens_that_do_not_see_each_other_are_samples_of_one_token(block):
    """Each has its own time, and nothing of another's."""
    model = tiny(block, num_classes=None)
    params, (x, t, _) = params_of(model, SHAPE), inputs(shape=SHAPE)
    n, flat = 8, patchify(token_times(t)[..., None], model.patch)[..., 0]
    rows, place = patchify(x, model.patch), positions(SHAPE[:3], model.patch)
    packed = Tokens(x=rows, position=place, segment=jnp.tile(jnp.arange(n)[None], (B, 1)))
    alone = Tokens(
        x=rows.reshape(B * n, 1, -1), position=jnp.tile(place, (B, 1, 1)).reshape(B * n, 1, 3)
    )
    apply = quick(lambda *a: model.apply({"params": params}, *a, Cond(), method="transform"))
    found, wanted = apply(packed, flat), apply(alone, flat.reshape(B * n))
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=2e-5)


def test_frames_of_a_patch_are_averaged_and_pixels_are_not():
    """A patch of two frames: the mean of two embeddings, or that of the patch's first pixel."""
    model = tiny(patch=(2, 2, 2))
    params, (x, t, cond) = params_of(model, SHAPE), inputs(shape=SHAPE)
    run = quick(lambda t: models.apply_fn(model)(params, x, t, cond))
    by_frame = t[:, None] + jnp.asarray([[0.0, 0.4]])
    each = jnp.broadcast_to(by_frame[:, :, None, None], (B, F, H, W))
    np.testing.assert_allclose(run(each), run(t), atol=2e-5)
    assert np.abs(run(by_frame) - run(t)).max() > 1e-3


@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (B, 3), (B, F, 3), (B, F, H, 1), (B, F, H, W, 3)]
)
def test_what_is_no_prefix_is_refused(shape):
    model = tiny()
    x, _, cond = inputs(shape=SHAPE)
    with pytest.raises(UserError, match=r"got t of shape .* expected a prefix"):
        jax.eval_shape(models.apply_fn(model), abstract(model, SHAPE), x, jnp.zeros(shape), cond)
