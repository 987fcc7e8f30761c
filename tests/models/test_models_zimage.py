"""Z-Image: what it is told, what fills its tokens up, its times, costs and published size."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, params_of, quick

from dit import config, models
from dit.scaling.costs import costs
from dit.scaling.jaxpr_flops import count_flops
from dit.types import Cond, UserError

SHAPE = (2, 4, 8, 3)  # f h w c


def tiny(**more):
    base = {"depth": 1, "refiner_depth": 1, "width": 24, "heads": 2, "in_channels": 3}
    return config.resolve("models", "zimage", **{**base, "context_dim": 7, **more})


def inputs(length=4, times=(), real=(3, 4)):
    draw = np.random.default_rng(1)
    number = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)  # noqa: E731
    x, context = number(2, *SHAPE), number(2, length, 7)
    mask = jnp.arange(length)[None] < jnp.asarray(real)[:, None]
    t = jnp.asarray(1000 * draw.random((2, *times)), jnp.float32)
    return x, t, Cond(context=context, context_mask=mask)


@functools.cache
def runs(model):
    apply, params = quick(models.apply_fn(model)), params_of(model, SHAPE)
    return lambda x, t, cond: apply(params, x, t, cond)


def test_what_it_is_told_changes_its_output_and_padding_does_not():
    run = runs(tiny())
    x, t, cond = inputs(40, real=(3, 40))
    out = run(x, t, cond)
    assert np.isfinite(out).all()
    for changed in (
        (x, t + 50, cond),
        (x, t, cond.replace(context=cond.context + 0.5)),
        (x, t, cond.replace(context_mask=cond.context_mask.at[:, 2].set(False))),
    ):
        assert np.abs(run(*changed) - out).max((1, 2, 3, 4)).min() > 1e-3
    padding = jnp.where(cond.context_mask[..., None], 0.0, 9.0)
    same = run(x, t, cond.replace(context=cond.context + padding))
    np.testing.assert_allclose(same, out, atol=1e-5)
    short, mask = cond.context[:, :3], jnp.ones((2, 3), bool)  # 32 tokens instead of 64
    first = run(x, t, Cond(context=short, context_mask=mask))[0]
    np.testing.assert_allclose(first, out[0], atol=1e-4)
    np.testing.assert_allclose(run(x, t, Cond(context=short))[0], out[0], atol=1e-4)
    none = run(x, t, cond.replace(context_mask=jnp.zeros((2, 40), bool)))
    assert np.isfinite(none).all()


@pytest.mark.parametrize("null", ["learned", "zero"])
def test_a_dropped_sample_is_told_nothing(null):
    run = runs(tiny(null=null))
    x, t, cond = inputs()
    dropped = cond.replace(drop=jnp.asarray([True, False]))
    change = run(x, t, dropped.replace(context=cond.context + 1)) - run(x, t, dropped)
    change = np.abs(change).max((1, 2, 3, 4))
    assert change[0] == 0
    assert change[1] > 1e-3


def test_frames_and_tokens_may_have_times_of_their_own():
    run = runs(tiny())
    x, t, cond = inputs()
    out = run(x, t, cond)
    frames = jnp.broadcast_to(t[:, None], (2, 2))
    np.testing.assert_allclose(run(x, frames, cond), out, atol=1e-4)
    later = frames.at[:, 1].add(50.0)
    other = run(x, later, cond)
    assert np.abs(other - out).max((2, 3, 4)).min() > 1e-3
    pixels = jnp.broadcast_to(later[:, :, None, None], (2, *SHAPE[:3]))
    np.testing.assert_allclose(run(x, pixels, cond), other, atol=1e-4)


@pytest.mark.parametrize("level", ["sample", "frame", "token"])
def test_its_multiply_adds_are_those_of_the_program(level):
    model = tiny().plain()
    length, times = 40, {"sample": (), "frame": (2,), "token": SHAPE[:3]}[level]
    x, t, cond = inputs(length, times)
    x, t, context = x[:1], t[:1], cond.context[:1]

    def run(params):
        return models.apply_fn(model)(params, x, t, Cond(context=context)).sum()

    found = costs(model, SHAPE, context_len=length, level=level)
    assert found.forward == count_flops(run, abstract(model, SHAPE))


def test_the_published_network_and_what_it_cannot_be():
    own = config.resolve("models", "zimage", size="Z-Image", in_channels=16)
    assert models.count_params(abstract(own, (1, 16, 16, 16))) == 6_154_908_736  # as diffusers'
    form = config.resolve("interop", "diffusers_z_image")
    for change, message in (({"size": "Z"}, "no size 'Z'"), ({"heads": 5}, "heads must divide")):
        with pytest.raises(UserError, match=message):
            tiny(**change)
    with pytest.raises(UserError, match="got null='learned'"):
        form.to_state(params_of(tiny(), SHAPE), tiny(), SHAPE)
