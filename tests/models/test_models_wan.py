"""Wan and LTX-Video: what they are told, their times, costs and published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, params_of, quick

from dit import config, models
from dit.models import wan_sizes
from dit.scaling.costs import costs
from dit.scaling.jaxpr_flops import count_flops
from dit.types import Cond, UserError

SHAPE = (2, 4, 8, 3)  # f h w c
ALL = {"image_context": (3, 6), "image_positions": True, "concat_channels": 2, "pooled_dim": 5}
KINDS = {
    "text": {"null": "zero"},
    "all": {**ALL, "num_classes": 3, "guidance_input": True},
    "nothing": {"context_dim": None},
    "ltx": {"size": "LTX-Video-0.9-2B"},
}
PUBLISHED = {  # parameters, as counted of diffusers' networks by the tests of parity
    "Wan2.1-T2V-1.3B": 1_418_996_800,
    "Wan2.1-T2V-14B": 14_288_491_584,
    "Wan2.1-I2V-14B": 16_394_878_784,
    "Wan2.1-FLF2V-14B": 16_395_536_704,
    "Wan2.2-T2V-A14B": 14_288_491_584,
    "Wan2.2-I2V-A14B": 14_288_901_184,
    "Wan2.2-TI2V-5B": 4_999_787_712,
    "LTX-Video-0.9-2B": 1_923_385_472,
    "LTX-Video-0.9.5-2B": 1_923_385_472,
    "LTX-Video-0.9.7-13B": 13_042_569_344,
}


def tiny(kind, **more):
    base = {"depth": 2, "width": 32, "heads": 2, "in_channels": 3, "context_dim": 7}
    return config.resolve("models", "wan", **{**base, **KINDS[kind], **more})


def inputs(model, batch=2, length=4, times=()):
    draw = np.random.default_rng(1)
    number = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)  # noqa: E731
    cond = {
        "label": jnp.arange(batch) if model.num_classes else None,
        "context": number(batch, length, 7) if model.context_dim else None,
        "image_context": number(batch, *model.image_context) if model.image_context else None,
        "pooled": number(batch, 5) if model.pooled_dim else None,
        "guidance": jnp.linspace(1, 4, batch) if model.guidance_input else None,
        "concat": number(batch, *SHAPE[:3], 2) if model.concat_channels else None,
    }
    if model.context_dim:
        cond["context_mask"] = jnp.arange(length)[None] < length - jnp.arange(batch)[::-1, None]
    t = jnp.asarray(draw.random((batch, *times)), jnp.float32)
    return number(batch, *SHAPE), t, Cond(**cond)


@functools.cache
def runs(model):
    """The network's output at random parameters, compiled once for all shapes of conditions."""
    apply, params = quick(models.apply_fn(model)), params_of(model, SHAPE)
    return lambda x, t, cond: apply(params, x, t, cond)


def far(a, b):
    """The largest difference in the sample that differs least."""
    return np.abs(a - b).max((1, 2, 3, 4)).min()


def test_what_it_is_told_changes_its_output_and_padding_does_not():
    model = tiny("all")
    x, t, cond = inputs(model)
    run = runs(model)
    out = run(x, t, cond)
    assert far(run(x, t + 0.1, cond), out) > 1e-3
    for name in ("context", "image_context", "pooled", "guidance", "concat"):
        change = cond.replace(**{name: 0.5 - getattr(cond, name)})
        assert far(run(x, t, change), out) > 1e-3, name
    assert far(run(x, t, cond.replace(label=cond.label + 1)), out) > 1e-3
    padding = jnp.where(cond.context_mask[..., None], 0.0, 9.0)
    same = run(x, t, cond.replace(context=cond.context + padding))
    np.testing.assert_allclose(same, out, atol=1e-4)
    turned = cond.replace(image_context=cond.image_context[:, ::-1])
    assert far(run(x, t, turned), out) > 1e-3  # its tokens have positions


def test_a_dropped_sample_is_told_nothing_but_what_its_image_shows():
    model = tiny("all")
    x, t, cond = inputs(model)
    run, dropped = runs(model), cond.replace(drop=jnp.asarray([True, False]))
    out = run(x, t, dropped)
    told = {"context": cond.context + 1, "pooled": cond.pooled + 1, "label": (cond.label + 1) % 3}
    change = np.abs(run(x, t, dropped.replace(**told)) - out).max((1, 2, 3, 4))
    assert change[0] < 1e-4 < 1e-3 < change[1]
    for name in ("guidance", "image_context", "concat"):
        other = dropped.replace(**{name: 1 - getattr(cond, name)})
        assert far(run(x, t, other), out) > 1e-3, name
    model = tiny("text")
    x, t, cond = inputs(model)
    unmasked = cond.replace(context_mask=None)
    out = runs(model)(x, t, unmasked.null(2))
    zero = runs(model)(x, t, unmasked.replace(context=0 * cond.context))
    np.testing.assert_allclose(out, zero, atol=1e-5)


def test_one_time_for_all_frames_is_one_for_the_sample_and_each_may_have_its_own():
    model = tiny("text")
    x, t, cond = inputs(model)
    run = runs(model)
    out = run(x, t, cond)
    np.testing.assert_allclose(run(x, jnp.stack([t, t], 1), cond), out, atol=1e-4)
    several = jnp.stack([0 * t, t], 1)  # the first frame is known
    one = run(x, several, cond)
    assert far(one, out) > 1e-3
    tokens = jnp.broadcast_to(several[..., None, None], x.shape[:-1])
    np.testing.assert_allclose(run(x, tokens, cond), one, atol=1e-4)


def test_seconds_are_told_and_a_first_latent_of_one_frame():
    model = tiny("ltx")
    causal = model.clone(rope="span_causal")
    place = jnp.asarray([[[0, 0, 0], [1, 2, 0]]], jnp.float32)
    cos, sin = (np.asarray(part) for part in model.rotary(place))
    assert cos.shape == (1, 2, 2, 8)
    np.testing.assert_array_equal(cos[:, :, 0, 0], 1)  # of 32 channels two do not turn
    np.testing.assert_array_equal(sin[:, :, 0, 0], 0)
    turn = np.pi / 2 * (2 * np.array([8 / 25 / 20, 64 / 2048, 0]) - 1)  # lowest frequency: t, y, x
    np.testing.assert_allclose(cos[0, 1, 0, 1:4], np.cos(turn), atol=1e-6)
    np.testing.assert_allclose(sin[0, 1, 0, 1:4], np.sin(turn), atol=1e-6)
    same = model.clone(fps=50.0, latent_size=(16, 32, 32)).rotary(place)
    jax.tree.map(np.testing.assert_array_equal, same, (cos, sin))
    early = causal.rotary(place)[0]
    np.testing.assert_array_equal(early[:, 0], cos[:, 0])  # an image lies at time 0 in both
    np.testing.assert_allclose(early[0, 1, 0, 1], np.cos(np.pi / 2 * (2 / 25 / 20 - 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "level"),
    [("text", "token"), ("all", "sample"), ("nothing", "frame"), ("ltx", "sample")],
)
def test_macs_equal_those_of_the_program(kind, level):
    model = tiny(kind, attention="xla", second_time=kind == "nothing")
    times = {"sample": (), "frame": SHAPE[:1], "token": SHAPE[:3]}[level]
    x, t, cond = inputs(model, batch=1, times=times)
    cond = cond.replace(r=t / 2 if model.second_time else None)

    def total(told):  # an encoder's output: it too has a gradient
        params, context, pooled = told
        given = cond.replace(context=context, pooled=pooled)
        return models.apply_fn(model)(params, x, t, given).sum()

    told = abstract(model, SHAPE), cond.context, cond.pooled
    found = costs(model, SHAPE, 4, level)
    assert found.forward == count_flops(total, told)
    assert found.training == count_flops(jax.grad(total), told)
    assert found.parameters == models.count_params(told[0])


@pytest.mark.parametrize("size", wan_sizes.SIZES)
def test_published_parameters(size):
    channels = 128 if "LTX" in size else 48 if "5B" in size else 16
    model = config.resolve("models", "wan", size=size, in_channels=channels)
    assert models.count_params(abstract(model, (2, 4, 4, channels))) == PUBLISHED[size]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "Wan2.1-T2V-13B"}, "did you mean 'Wan2.1-T2V-1.3B'"),
        ({"heads": 3}, "heads must divide"),
        ({"rope_axes": (8, 8, 8)}, "three even numbers .* with sum 16, as"),
        ({"context_dim": None, "image_context": (3, 6)}, "an image is read beside a text"),
        ({"fps": 24.0}, "got fps with rope='axes', which has no use for it"),
        ({"rope": "span", "rope_axes": (4, 4, 8)}, "got rope_axes with rope='span'"),
        ({"rope": "span", "width": 30}, "heads of 15 channels"),
        ({"image_positions": True}, "image_positions and no image_context"),
        ({"dtype": "float31"}, "did you mean 'float32'"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"attention": "cdnn"}, "did you mean 'cudnn'"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        tiny("text", **change)
    with pytest.raises(UserError, match=r"give a size, .* or also: depth, width, heads"):
        config.resolve("models", "wan", in_channels=3)


def test_an_image_of_another_size_or_for_another_network_is_refused():
    model = tiny("all")
    x, t, cond = inputs(model)
    apply, params = models.apply_fn(model), params_of(model, SHAPE)
    with pytest.raises(UserError, match=r"expected \(2, 3, 6\)"):
        apply(params, x, t, cond.replace(image_context=cond.image_context[:, 1:]))
    dit = config.resolve("models", "dit", depth=1, width=8, heads=1, patch=2, in_channels=3)
    with pytest.raises(UserError, match="take a network that has that"):
        models.apply_fn(dit)({}, x, t, Cond(image_context=cond.image_context))
