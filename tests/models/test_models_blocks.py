"""Every block: it trains, it takes times a frame, it hears its condition and forgets it on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import BLOCKS, inputs, params_of, quick, run, tiny

from dit import models
from dit.models.condition import Condition
from dit.models.transformer import make_block


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_flow_to_every_parameter(block):
    model = tiny(block, context_dim=7, positions="sincos+rope", qk_norm=True)
    params, (x, t, cond) = params_of(model), inputs(batch=3, context=3)
    cond = cond.replace(drop=jnp.array([False, True, False]), context_mask=jnp.ones((3, 3), bool))

    def loss(p):
        return jnp.square(models.apply_fn(model)(p, x, t, cond) - 1).mean()

    grads = quick(jax.grad(loss))(params)
    for path, g in jax.tree.leaves_with_path(grads):
        assert np.isfinite(g).all(), path
        assert np.any(g), path
        if path[0].key == "blocks":  # and in both layers
            assert all(np.any(layer) for layer in g), path


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2)])
def test_time_a_frame(block, patch):
    """Equal times equal one time; with different ones, a frame's time matters most to itself."""
    shape = (4, 4, 4, 3)
    model = tiny(block, patch=patch)
    params = params_of(model, shape)
    x, t, cond = inputs(shape=shape)
    once = run(model, params, x, t, cond)
    each = run(model, params, x, jnp.broadcast_to(t[:, None], (2, 4)), cond)
    np.testing.assert_allclose(each, once, atol=2e-5)
    times = jnp.broadcast_to(t[:, None], (2, 4)).at[:, 3].add(20.0)
    moved = np.abs(run(model, params, x, times, cond) - once).mean((0, 2, 3, 4))
    assert (moved > 0).all()  # through attention
    if model.block not in ("cross_attention", "in_context"):  # there it is a token that all see
        assert moved[3] > moved[0]
    if patch[0] == 2:  # the average of the frames of a patch: their order does not matter
        swapped = run(model, params, x, times[:, jnp.array([0, 1, 3, 2])], cond)
        np.testing.assert_allclose(swapped, run(model, params, x, times, cond), atol=2e-5)


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_dropping_the_condition(block):
    """A dropped sample is the null class and the null context, whatever its label and context."""
    model = tiny(block, context_dim=7)
    params, (x, t, cond) = params_of(model), inputs(context=3)
    x, t = x.at[1].set(x[0]), t.at[1].set(t[0])
    cond = cond.replace(label=jnp.array([1, 2]))
    kept = run(model, params, x, t, cond.replace(drop=jnp.zeros((2,), bool)))
    np.testing.assert_allclose(kept, run(model, params, x, t, cond), atol=1e-6)
    assert np.abs(kept[0] - kept[1]).max() > 1e-2
    null = run(model, params, x, t, cond.null(2))
    np.testing.assert_allclose(null[0], null[1], atol=1e-5)
    shorter = cond.replace(context=cond.context[:, :1]).null(2)
    np.testing.assert_allclose(run(model, params, x, t, shorter), null, atol=1e-5)
    one = run(model, params, x, t, cond.replace(drop=jnp.array([True, False])))
    np.testing.assert_allclose(one[0], null[0], atol=1e-5)
    np.testing.assert_allclose(one[1], kept[1], atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_null_class_is_the_last_row(block):
    model = tiny(block)
    params, (x, t, cond) = params_of(model), inputs()
    row = run(model, params, x, t, cond.replace(label=jnp.full((2,), 5)))
    np.testing.assert_allclose(run(model, params, x, t, cond.null(2)), row, atol=1e-6)


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_context_mask(block):
    """Masked embeddings are not there, wherever they stand."""
    model = tiny(block, context_dim=7)
    params, (x, t, cond) = params_of(model), inputs(context=3)
    mask = jnp.array([[True, True, False], [True, False, False]])
    masked = run(model, params, x, t, cond.replace(context_mask=mask))
    junk = cond.context + 50.0 * ~mask[..., None]
    np.testing.assert_allclose(
        run(model, params, x, t, cond.replace(context=junk, context_mask=mask)), masked, atol=1e-5
    )
    short = cond.replace(context=cond.context[:, :2])
    np.testing.assert_allclose(run(model, params, x, t, short)[0], masked[0], atol=1e-5)
    assert np.abs(run(model, params, x, t, cond)[1] - masked[1]).max() > 1e-3


@pytest.mark.parametrize("block", ["adaln_cross", "cross_attention", "in_context"])
def test_the_order_of_context_does_not_matter(block):
    model = tiny(block, context_dim=7)
    params, (x, t, cond) = params_of(model), inputs(context=3)
    other = cond.replace(context=cond.context[:, ::-1])
    np.testing.assert_allclose(
        run(model, params, x, t, other), run(model, params, x, t, cond), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("block", "one_by_one"), [("adaln_cross", True), ("adaln_zero", False)])
def test_the_tokens_of_a_context_are_read_one_by_one_or_by_their_mean(block, one_by_one):
    model = tiny(block, context_dim=7)
    params, (x, t, cond) = params_of(model), inputs(context=3)
    mean = jnp.broadcast_to(cond.context.mean(1, keepdims=True), cond.context.shape)
    moved = run(model, params, x, t, cond.replace(context=mean)) - run(model, params, x, t, cond)
    assert (np.abs(moved).max() > 1e-2) == one_by_one


def test_adaln_cross_begins_as_adaln_zero():
    """What it has more starts without effect."""
    plain, more = tiny("adaln_zero"), tiny("adaln_cross", context_dim=7)
    x, t, cond = inputs(context=3)
    params = jax.jit(lambda key: models.init(more, key, x.shape[1:]))(jax.random.key(0))
    noise = params_of(plain)  # of all that both have, so that nothing hides behind zeros
    both = {**params, **{k: noise[k] for k in noise if k != "blocks"}}
    both["blocks"] = {**params["blocks"], **noise["blocks"]}
    want = run(plain, noise, x, t, cond.replace(context=None))
    np.testing.assert_allclose(run(more, both, x, t, cond), want, atol=1e-6)


def test_adaln_zero_block_is_the_identity_at_first():
    block = make_block(tiny())
    x = jax.random.normal(jax.random.key(0), (2, 5, 24))
    c = Condition(vector=jax.random.normal(jax.random.key(1), (2, 1, 24)))
    out, _ = quick(block.init_with_output)(jax.random.key(2), x, c)
    np.testing.assert_array_equal(out, x)


def test_modulation_order_is_shift_scale_gate():
    """With only attention's gate open, its shift and scale matter and those of the MLP do not."""
    model = tiny(depth=1, positions="rope")
    params, (x, t, cond) = params_of(model), inputs()
    linear = params["blocks"]["modulation"]["linear"]
    gate = jnp.zeros((1, 6, 24)).at[0, 2].set(1.0)

    def out(bias):
        modulation = {"linear": {"kernel": 0 * linear["kernel"], "bias": bias}}
        changed = params | {"blocks": params["blocks"] | {"modulation": modulation}}
        return run(model, changed, x, t, cond)

    base = out(gate)
    for row, matters in ((0, True), (1, True), (3, False), (4, False)):
        moved = np.abs(out(gate.at[0, row].set(0.5)) - base).max()
        assert (moved > 1e-3) == matters, row
