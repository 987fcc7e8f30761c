"""Every field of Cond: asked for by a keyword, without effect at the start, and then not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import BLOCKS, abstract, inputs, params_of, quick, run, tiny

from dit import models
from dit.models.condition import OPTIONS, taken
from dit.types import MASKS, Cond, UserError

SHAPE = (2, 4, 4, 3)
MORE = {"pooled_dim": 5, "second_time": True, "guidance_input": True, "concat_channels": 2}
FIELDS = ("pooled", "r", "guidance", "concat")


def values(cond, t, batch=2):
    """``cond`` with all fields that ``MORE`` asks for."""
    draw = np.random.default_rng(2)
    known = jnp.asarray(draw.standard_normal((batch, *SHAPE[:3], 2)), jnp.float32)
    pooled = jnp.asarray(draw.standard_normal((batch, 5)), jnp.float32)
    return cond.replace(pooled=pooled, r=0.4 * t, guidance=1 + 3 * t[:, 0], concat=known)


def times(t):
    return t[:, None] + 0.1 * jnp.arange(2.0)[None]


def test_every_field_has_a_keyword():
    names = {field.name for field in dataclasses.fields(Cond)}
    assert set(OPTIONS) == names - {*MASKS, "tokens", "drop"}


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_more_conditions_change_nothing_at_the_start_and_then_do(block):
    plain, model = tiny(block, depth=1), tiny(block, depth=1, **MORE)
    x, t, cond = inputs(shape=SHAPE)
    t = times(t)
    full = values(cond, t)
    new = models.init(model, jax.random.key(0), SHAPE)
    old = params_of(plain, SHAPE)
    assert set(new) - set(old) == set(FIELDS)
    started = {**new, **old}
    np.testing.assert_allclose(
        run(model, started, x, t, full), run(plain, old, x, t, cond), atol=1e-6
    )
    params = params_of(model, SHAPE)
    out = run(model, params, x, t, full)
    for name in FIELDS:
        moved = full.replace(**{name: 0.5 + getattr(full, name)})
        assert np.abs(run(model, params, x, t, moved) - out).max() > 1e-3, name
    grads = quick(jax.grad(lambda p: (models.apply_fn(model)(p, x, t, full) ** 2).sum()))(started)
    grads = jax.device_get(grads)
    for name in FIELDS:  # all learn from the first step on
        assert any(np.any(g) for g in jax.tree.leaves(grads[name])), name


def test_dropped_samples_lose_label_and_pooled_and_keep_the_rest():
    model = tiny(**MORE)
    params, (x, t, cond) = params_of(model, SHAPE), inputs(shape=SHAPE)
    t = times(t)
    full = values(cond, t).replace(drop=jnp.asarray([True, False]))
    out = run(model, params, x, t, full)
    for name, kept in (
        ("label", False),
        ("pooled", False),
        ("r", True),
        ("guidance", True),
        ("concat", True),
    ):
        value = getattr(full, name)
        moved = run(model, params, x, t, full.replace(**{name: value + 1}))
        change = np.abs(moved - out).max((1, 2, 3, 4))
        assert (change[0] > 1e-4) == kept, name
        assert change[1] > 1e-4, name


@pytest.mark.parametrize("name", sorted(taken(tiny(context_dim=7, **MORE))))
def test_conditions_missing_or_not_expected_are_refused(name):
    x, t, cond = inputs(shape=SHAPE, context=3)
    t = times(t)
    full, model = values(cond, t), tiny(context_dim=7, **MORE)
    shapes = abstract(model, SHAPE)
    with pytest.raises(UserError, match=rf"Cond\.{name} is missing"):
        jax.eval_shape(models.apply_fn(model), shapes, x, t, full.replace(**{name: None}))
    without = {"label": {"num_classes": None}, "context": {"context_dim": None}}
    more = {"context_dim": 7, **MORE, **without.get(name, {})}
    for option in (OPTIONS[name],):
        more[option] = False if more.get(option) is True else None
    model = tiny(**more)
    with pytest.raises(UserError, match=rf"got Cond\.{name}, but .* without {OPTIONS[name]}"):
        jax.eval_shape(models.apply_fn(model), abstract(model, SHAPE), x, t, full)


def test_a_text_is_refused_by_a_network_without_an_encoder():
    x, t, cond = inputs(shape=SHAPE)
    model = tiny()
    cond = cond.replace(tokens=jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(UserError, match=r"got Cond\.tokens, but .* give the config a section text"):
        jax.eval_shape(models.apply_fn(model), abstract(model, SHAPE), x, t, cond)


@pytest.mark.parametrize("name", ["pooled", "r", "concat"])
def test_conditions_of_another_shape_are_refused(name):
    x, t, cond = inputs(shape=SHAPE)
    t = times(t)
    full, model = values(cond, t), tiny(**MORE)
    wrong = getattr(full, name)[:, :1]
    with pytest.raises(UserError, match=rf"got a {name} of shape .*; expected \(2"):
        jax.eval_shape(
            models.apply_fn(model), abstract(model, SHAPE), x, t, full.replace(**{name: wrong})
        )
