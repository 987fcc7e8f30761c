"""MMDiT: its stages, what its streams are told, its costs and the sizes of the published networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, params_of, quick

from dit import config, models
from dit.models import mmdit_sizes, patchify
from dit.models.positions import rotary
from dit.scaling.costs import costs
from dit.scaling.jaxpr_flops import count_flops
from dit.training.transfer import Transfer, ratios
from dit.types import Cond, UserError

SHAPE = (2, 4, 8, 3)  # f h w c
KINDS = {
    "sd3": {"depth": 3, "dual_depth": 1, "positions": "sincos", "position_table": (12, 8)},
    "flux": {
        "depth": 1,
        "single_depth": 2,
        "guidance_input": True,
        "null": "zero",
        "positions": "sincos+rope",
    },
    "flux2": {
        "depth": 1,
        "single_depth": 1,
        "shared_modulation": True,
        "bias": False,
        "mlp": "swiglu",
        "positions": "rope_text",
        "pooled_dim": None,
    },
    "qwen": {"depth": 2, "context_ends": False, "context_norm": True, "positions": "msrope"},
}
PUBLISHED = {  # parameters, as counted of diffusers' networks by test_models_mmdit_parity.py
    "SD3-medium": 2_028_328_000,
    "SD3.5-medium": 2_243_171_520,
    "SD3.5-large": 8_056_627_520,
    "FLUX.1-dev": 11_901_408_320,
    "FLUX.1-schnell": 11_891_178_560,
    "FLUX.2-dev": 32_223_281_152,
    "FLUX.2-klein-9B": 9_078_581_248,
    "FLUX.2-klein-4B": 3_875_544_576,
    "Qwen-Image": 20_430_401_088,
}


def tiny(kind, **more):
    base = {"width": 32, "heads": 2, "in_channels": 3, "context_dim": 7, "pooled_dim": 5}
    return config.resolve("models", "mmdit", **{**base, **KINDS[kind], **more})


def inputs(model, batch=2, length=4, times=()):
    draw = np.random.default_rng(1)
    number = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)  # noqa: E731
    cond = Cond(
        context=number(batch, length, 7),
        context_mask=jnp.arange(length)[None] < jnp.asarray([[length - 1], [length]]),
        pooled=number(batch, 5) if model.pooled_dim else None,
        guidance=jnp.asarray([1.0, 4.0]) if model.guidance_input else None,
    )
    return number(batch, *SHAPE), jnp.asarray(draw.random((batch, *times)), jnp.float32), cond


@functools.cache
def runs(model):
    """The network's output at random parameters, compiled once for all shapes of conditions."""
    apply, params = quick(models.apply_fn(model)), params_of(model, SHAPE)
    return lambda x, t, cond: apply(params, x, t, cond)


@pytest.mark.first
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_told_changes_its_output_and_padding_does_not(kind):
    model = tiny(kind)
    x, t, cond = inputs(model)
    run = runs(model)
    out = run(x, t, cond)
    assert np.abs(run(x, t + 0.1, cond) - out).max() > 1e-3
    for name in ("context", "pooled", "guidance"):
        value = getattr(cond, name)
        if value is not None:
            change = run(x, t, cond.replace(**{name: value + 0.5})) - out
            assert np.abs(change).max((1, 2, 3, 4)).min() > 1e-3, name
    padding = jnp.where(cond.context_mask[..., None], 0.0, 9.0)
    same = run(x, t, cond.replace(context=cond.context + padding))
    np.testing.assert_allclose(same, out, atol=1e-4)
    shorter = jnp.ones_like(cond.context_mask).at[:, 1:].set(False)
    change = run(x, t, cond.replace(context_mask=shorter)) - out
    assert np.abs(change).max((1, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_dropped_sample_is_told_nothing(kind):
    """A learned null or zero, of whatever length; guidance stays."""
    model = tiny(kind)
    x, t, cond = inputs(model)
    run, dropped = runs(model), cond.replace(drop=jnp.asarray([True, False]))
    out = run(x, t, dropped)
    other = dropped.replace(
        context=cond.context + 1, pooled=cond.pooled + 1, context_mask=~cond.context_mask | True
    )
    change = np.abs(run(x, t, other) - out).max((1, 2, 3, 4))
    assert change[0] < 1e-4 < 1e-3 < change[1]
    if model.null == "learned":  # a zero takes the place of every token, where nothing is masked
        unmasked = run(x, t, dropped.replace(context_mask=None))  # the other's text has no padding
        np.testing.assert_allclose(unmasked, out, atol=1e-4)
    if model.guidance_input:
        change = run(x, t, dropped.replace(guidance=cond.guidance + 1)) - out
        assert np.abs(change).max((1, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("kind", ["sd3", "flux2"])
def test_one_time_for_all_frames_is_one_for_the_sample(kind):
    model = tiny(kind)
    x, t, cond = inputs(model)
    run = runs(model)
    out = run(x, t, cond)
    np.testing.assert_allclose(run(x, jnp.stack([t, t], 1), cond), out, atol=1e-4)
    several = jnp.stack([t, t + 0.2], 1)
    one = run(x, several, cond)
    assert np.abs(one - out).max() > 1e-3
    tokens = jnp.broadcast_to(several[..., None, None], x.shape[:-1])
    np.testing.assert_allclose(run(x, tokens, cond), one, atol=1e-4)


@pytest.mark.first
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_stages_are_the_same_scanned_unrolled_and_taken_apart(kind):
    model = tiny(kind, unroll=1, remat="dots")
    params, (x, t, cond) = params_of(model, SHAPE), inputs(model)
    out = runs(model)(x, t, cond)
    apply = quick(models.apply_fn(model.clone(unroll=True)))
    np.testing.assert_allclose(apply(params, x, t, cond), out, atol=1e-4)
    np.testing.assert_allclose(apply(model.unstack(params), x, t, cond), out, atol=1e-4)
    transfer = Transfer(base_width=16, base_depth=1)
    found = ratios(transfer, models.logical_axes(model, SHAPE), abstract(model, SHAPE))
    assert found == (2, model.depth + model.single_depth)


@pytest.mark.first
@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("sd3", "sample"),
        ("sd3", "token"),
        ("flux", "frame"),
        ("flux2", "token"),
        ("qwen", "sample"),
    ],
)
def test_macs_equal_those_of_the_program(kind, level):
    model = tiny(kind, attention="xla")
    times = {"sample": (), "frame": SHAPE[:1], "token": SHAPE[:3]}[level]
    x, t, cond = jax.tree.map(lambda a: a[:1], inputs(model, times=times))

    def total(told):  # an encoder's output: it too has a gradient
        params, context, pooled = told
        given = cond.replace(context=context, pooled=pooled)
        return models.apply_fn(model)(params, x, t, given).sum()

    told = abstract(model, SHAPE), cond.context, cond.pooled
    found = costs(model, SHAPE, 4, level)
    assert found.forward == count_flops(total, told)
    side = model.block("blocks").side("text")(parent=None)
    unread = sum(side.macs(4, 1)[part] for part in ("out", "mlp")) if kind == "qwen" else 0
    assert found.training - 2 * 2 * unread == count_flops(jax.grad(total), told)
    assert found.parameters == models.count_params(told[0])


def test_where_image_and_text_lie():
    """MSRoPE: the angles of a text's tokens are those of an image's tokens further down the diagonal."""
    model = tiny("qwen")
    rotary_of = functools.partial(rotary, axes=model.rope_axes, theta=model.rope_theta)
    position = patchify.positions((1, 6, 10), (1, 2, 2))
    angles = model.angles(position, (1, 3, 5), {"text": 2, "image": 15})
    want = rotary_of(jnp.asarray([[[0, -2, -3], [0, 0, 0], [0, 0, 1.0], [2, 2, 2], [3, 3, 3]]]))
    got = [angles["image"][0][0, i] for i in (0, 13, 14)] + list(angles["text"][0][0])
    np.testing.assert_allclose(jnp.stack(got), want[0][0], atol=1e-6)
    np.testing.assert_array_equal(angles["row"][1][:, :2], angles["text"][1])


@pytest.mark.parametrize("size", mmdit_sizes.SIZES)
def test_published_parameters(size):
    model = config.resolve("models", "mmdit", size=size, in_channels=128 if "2-" in size else 16)
    shape = (1, 16, 16, model.in_channels)
    assert models.count_params(abstract(model, shape)) == PUBLISHED[size]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "SD3-medum"}, "did you mean 'SD3-medium'"),
        ({"heads": 3}, "heads must divide"),
        ({"positions": "ropes"}, "did you mean 'rope'"),
        ({"rope_axes": (8, 8)}, "expected 3 even numbers with sum 16, as"),
        ({"context_ends": True, "single_depth": 1}, "read the text; give one"),
        ({"dual_depth": 3}, "expected at most 2"),
        ({"shared_modulation": True, "dual_depth": 1}, "a modulation has one size"),
        ({"dtype": "float31"}, "did you mean 'float32'"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"attention": "cdnn"}, "did you mean 'cudnn'"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        tiny("flux", **{"depth": 3, "single_depth": 0} | change)
    with pytest.raises(UserError, match=r"give a size, .* or also: depth, width, heads"):
        config.resolve("models", "mmdit", in_channels=3)


def test_an_image_larger_than_the_table_of_positions_is_refused():
    model = tiny("sd3", position_table=(3, 2))
    with pytest.raises(UserError, match="got 2x4 patches; this model knows 3x3 positions"):
        abstract(model, SHAPE)
