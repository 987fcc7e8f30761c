"""The U-Net: what frames, time and conditions do to it, what it costs, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, params_of, quick

from dit import config, models
from dit.models import unet_blocks, unet_sizes
from dit.parallel.mesh import PRESETS, batch_sharding, make_mesh
from dit.parallel.rules import in_force, shardings
from dit.scaling.costs import costs
from dit.scaling.jaxpr_flops import count_flops
from dit.scaling.ladder import ladder
from dit.types import Cond, UserError

SHAPE = (3, 4, 8, 2)
PUBLISHED = {  # millions of parameters without the null class; Ho et al. 2020, Dhariwal & Nichol 2021
    "DDPM-32": (35.7, 0.05, {}),
    "ADM-64": (296, 0.5, {"num_classes": 1000, "learn_sigma": True}),
    "ADM-128": (422, 0.5, {"num_classes": 1000, "learn_sigma": True}),
    "ADM-256": (554, 0.5, {"num_classes": 1000, "learn_sigma": True}),
}


def tiny(**kwargs):
    defaults = {"width": 8, "multipliers": (1, 2), "depth": 1, "attention_levels": (1,)}
    defaults |= {"head_size": 8, "norm_groups": 4, "in_channels": 2}
    return config.resolve("models", "unet", **(defaults | kwargs))


CLIP = tiny(temporal=True, num_classes=5, context_dim=7, concat_channels=1)
IMAGE = tiny(num_classes=5, context_dim=7, concat_channels=1)


@functools.cache
def clips(batch=2):
    """Random ``(x, t, cond)``, one noise level a frame, with every kind of condition."""
    draw = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(draw.standard_normal(shape), jnp.float32)

    x, concat = normal(batch, *SHAPE), normal(batch, *SHAPE[:3], 1)
    t = jnp.asarray(draw.random((batch, SHAPE[0])), jnp.float32)
    cond = Cond(
        label=jnp.arange(batch) % 5,
        context=normal(batch, 4, 7),
        context_mask=jnp.arange(4)[None] < 3 + jnp.arange(batch)[:, None] % 2,
        drop=jnp.arange(batch) > 5,
        concat=concat,
    )
    return x, t, cond


@functools.cache
def run(model):
    return quick(models.apply_fn(model))


def image_params(params):
    """Without attention along time."""
    return {
        k: {n: p for n, p in v.items() if n != "along_time"} if isinstance(v, dict) else v
        for k, v in params.items()
    }


def frames(tree, i):
    """Frame ``i`` of a clip and its condition."""
    x, t, cond = tree
    return x[:, i : i + 1], t[:, i : i + 1], cond.replace(concat=cond.concat[:, i : i + 1])


def different(a, b):
    return float(jnp.abs(a - b).max()) > 1e-3


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.slow
def test_without_attention_along_time_each_frame_is_an_image():
    params = image_params(params_of(CLIP, SHAPE))
    out = run(IMAGE)(params, *clips())
    assert out.shape == (2, *SHAPE)
    for i in range(SHAPE[0]):
        x, t, cond = frames(clips(), i)
        close(run(IMAGE)(params, x, t[:, 0], cond), out[:, i : i + 1])
    order = jnp.array([2, 0, 1])
    x, t, cond = clips()
    permuted = x[:, order], t[:, order], cond.replace(concat=cond.concat[:, order])
    close(run(IMAGE)(params, *permuted), out[:, order])


@pytest.mark.slow
def test_attention_along_time_joins_frames_and_leaves_an_image_alone():
    params = params_of(CLIP, SHAPE)
    out = run(CLIP)(params, *clips())
    assert different(out, run(IMAGE)(image_params(params), *clips()))
    x, t, cond = clips()
    other = run(CLIP)(params, x.at[:, 2].add(1.0), t, cond)
    assert different(other[:, 0], out[:, 0])
    mirrored = run(CLIP)(params, x[:, ::-1], t[:, ::-1], cond.replace(concat=cond.concat[:, ::-1]))
    assert different(mirrored[:, ::-1], out)  # it knows which frame is before which
    x, t, cond = frames(clips(), 1)
    image = x, t[:, 0], cond
    close(run(CLIP)(params, *image), run(IMAGE)(image_params(params), *image))


@pytest.mark.slow
def test_levels_agree_where_they_coincide():
    """Times a frame and a pixel that are the same, in value and gradient; other ones are not."""
    params, (x, t, cond) = params_of(SMALL, SHAPE), clips()
    cond = cond.replace(concat=None)

    @quick
    def value(params, x, t):
        out, pull = jax.vjp(lambda *a: models.apply_fn(SMALL)(*a, cond), params, x, t)
        grads = pull(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))
        return out, grads[:2], grads[2].reshape(*SHAPE[:1], -1).sum(1) if t.ndim == 4 else grads[2]

    each = jnp.broadcast_to(t[:, :, None, None], x.shape[:4])
    by_frame, by_pixel = value(params, x, t), value(params, x, each)
    close(by_pixel[0], by_frame[0])
    equal_trees(by_pixel[1], by_frame[1], 1e-4)
    other = value(params, x, each.at[:, :, :2].add(0.3))
    assert different(other[0], by_frame[0])


def test_a_pixel_is_modulated_by_its_own_vector():
    """Two halves of a frame: away from their border, what each is where all of the frame is as it."""
    x = clips()[0][:, :1]
    vector = jnp.asarray(np.random.default_rng(3).standard_normal((2, 1, 1, 2, 5)), jnp.float32)
    block = unet_blocks.ResidualBlock(
        unet_blocks.Layer("", 0, 2, 4), dataclasses.replace(SMALL.style, groups=2)
    )
    draw = np.random.default_rng(4)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, vector[..., :1, :])
    params = jax.tree.map(lambda p: 0.3 * draw.standard_normal(p.shape, np.float32), shapes)
    apply = quick(block.apply)
    halves = apply(params, x, jnp.repeat(jnp.repeat(vector, 4, axis=3), 4, axis=2))
    for side, columns in ((0, slice(0, 3)), (1, slice(5, 8))):
        whole = apply(params, x, vector[..., side : side + 1, :])
        close(halves[..., columns, :], whole[..., columns, :])
        assert different(halves[..., 3:5, :], whole[..., 3:5, :])


def test_at_first_nothing_is_added_along_time_and_the_output_is_zero():
    fresh = models.init(CLIP, jax.random.key(0), SHAPE)
    of_image = abstract(CLIP, (1, *SHAPE[1:]))
    assert jax.tree.structure(fresh) == jax.tree.structure(of_image)
    assert not jnp.any(run(CLIP)(fresh, *clips()))
    kernel = params_of(CLIP, SHAPE)["final"]["kernel"]
    seen = {**fresh, "final": {**fresh["final"], "kernel": kernel}}
    close(run(CLIP)(seen, *clips()), run(IMAGE)(image_params(seen), *clips()))


def test_every_condition_changes_the_output_and_a_dropped_one_is_the_null():
    params, (x, t, cond) = params_of(CLIP, SHAPE), clips()
    out = run(CLIP)(params, x, t, cond)
    for changed in (
        cond.replace(label=cond.label + 1),
        cond.replace(context=cond.context.at[:, 0].add(1.0)),
        cond.replace(concat=cond.concat + 1.0),
        cond.null(2),
    ):
        assert different(run(CLIP)(params, x, t, changed), out)
    assert different(run(CLIP)(params, x, t.at[:, 0].add(0.3), cond), out)
    hidden = cond.replace(context=cond.context.at[0, 3].add(9.0))
    close(run(CLIP)(params, x, t, hidden), out)
    null = cond.null(2)
    other = null.replace(label=cond.label + 2, context=cond.context + 1.0)
    close(run(CLIP)(params, x, t, other), run(CLIP)(params, x, t, null))


SMALL = tiny(temporal=True, attention_levels=(), num_classes=5, context_dim=7)


@pytest.fixture(scope="module")
def gradient():
    """Loss and gradient on one device; no parameter is zero. Attention is in the middle only."""
    params = params_of(SMALL, SHAPE, noise=0.1)
    x, t, cond = clips(8)
    data = x, t, cond.replace(concat=None)
    return params, data, quick(loss_and_gradient(SMALL))(params, *data)


def loss_and_gradient(model):
    def loss(params, x, t, cond):
        return jnp.square(models.apply_fn(model)(params, x, t, cond) - x).mean()

    return jax.value_and_grad(loss)


def equal_trees(got, want, rtol):
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for a, b in leaves:
        a, b = jax.device_get((a, b))
        assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b) + 1e-7


@pytest.mark.slow
def test_gradients_are_finite_reach_every_parameter_and_survive_remat(gradient):
    params, data, (want, grads) = gradient
    for path, grad in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert grad.any(), jax.tree_util.keystr(path)
    got, again = quick(loss_and_gradient(SMALL.clone(remat="full")))(params, *data)
    assert abs(got - want) <= 1e-6 * want
    equal_trees(again, grads, 1e-4)


MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"preset": "fsdp"}, {"preset": "dp"}]
MESHES += [{"preset": name} for name in PRESETS if name not in ("fsdp", "dp", "fsdp+context")]
MESHES = [pytest.param(sizes, marks=pytest.mark.exhaustive) for sizes in MESHES]


@pytest.mark.parametrize(
    "sizes",
    [  # rings of two devices and of four, for three frames
        {"fsdp": 2, "context": 2, "tensor": 2},
        {"fsdp": 2, "context": 4},
        {"preset": "fsdp+context"},
        *MESHES,
    ],
    ids=str,
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not divide")
def test_a_mesh_gives_the_numbers_of_one_device(gradient, sizes):
    params, data, (want, want_grads) = gradient
    mesh = make_mesh(sizes, jax.devices()[:8])
    where = shardings(params, models.logical_axes(SMALL, SHAPE), mesh)

    def step(params, *data):
        with in_force(mesh):
            return loss_and_gradient(SMALL)(params, *data)

    rows = batch_sharding(mesh)
    params = jax.device_get(params)  # to split arrays of a device compiles
    data = jax.device_put(data, rows)
    jitted = jax.jit(step, in_shardings=(where, rows, rows, rows), out_shardings=(None, where))
    got, grads = jitted(jax.device_put(params, where), *data)
    assert abs(float(got) - float(want)) <= 1e-5 * float(want)
    equal_trees(grads, want_grads, 1e-4)


@pytest.mark.first
@pytest.mark.parametrize(
    ("f", "level", "options"),
    [
        (4, "frame", {"temporal": True, "context_dim": 7, "concat_channels": 3}),
        (4, "sample", {"temporal": (0,), "resblock_updown": False, "scale_shift": False}),
        (1, "token", {"multipliers": (1, 2, 2), "attention_levels": (), "learn_sigma": True}),
        (4, "frame", {"pooled_dim": 6, "second_time": True, "guidance_input": True}),
    ],
    ids=str,
)
def test_macs_equal_those_of_the_program(f, level, options):
    model = tiny(num_classes=5, attention="xla", **options)
    shape, context = (f, 4, 8, 2), 3 if model.context_dim else 0
    x, t, cond = model.example(shape)
    if level != "sample":
        t = jnp.zeros({"frame": (1, f), "token": (1, *shape[:3])}[level])
        cond = cond.replace(r=t if model.second_time else None)
    if context:
        cond = cond.replace(context=jnp.zeros((1, context, 7)))
    cond = cond.replace(drop=jnp.zeros((1,), bool))

    @jax.jit  # traced once
    def total(params):
        return models.apply_fn(model)(params, x, t, cond).sum()

    found = costs(model, shape, context, level)
    assert found.forward == count_flops(total, abstract(model, shape))
    assert found.training == count_flops(jax.grad(total), abstract(model, shape))
    assert found.parameters == models.count_params(abstract(model, shape))


@pytest.mark.first
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_parameters(size):
    millions, within, options = PUBLISHED[size]
    model = config.resolve("models", "unet", size=size, in_channels=3, **options)
    side = int(size.split("-")[1])
    null = 4 * model.width if options else 0
    count = models.count_params(abstract(model, (1, side, side, 3)))
    assert abs((count - null) / 1e6 - millions) <= within


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_the_same_on_a_cpu_and_elsewhere(monkeypatch, stride):
    x, kernel = (
        clips()[0][:, 0],
        jnp.asarray(np.random.default_rng(2).standard_normal((3, 3, 2, 5))),
    )

    def both(x, kernel):
        return unet_blocks.convolve(x, kernel.astype(x.dtype), stride)

    def loss(x, kernel):
        return jnp.square(both(x, kernel)).sum()

    here = both(x, kernel), *jax.grad(loss, (0, 1))(x, kernel)
    monkeypatch.setattr(unet_blocks, "platform", lambda: "tpu")
    there = both(x, kernel), *jax.grad(loss, (0, 1))(x, kernel)
    jax.tree.map(close, here, there)
    assert "conv_general_dilated" in str(jax.make_jaxpr(both)(x, kernel))


def test_published_multiply_adds():
    """1,120 "Gflops" of ADM at 256 pixels, as Peebles & Xie 2023 count (table 9)."""
    model = config.resolve(
        "models", "unet", size="ADM-256", in_channels=3, num_classes=1000, learn_sigma=True
    )
    assert sum(model.macs((1, 256, 256, 3)).values()) / 1e9 == pytest.approx(1120, rel=1e-3)


@pytest.mark.parametrize("size", unet_sizes.SIZES)
def test_own_numbers_take_precedence_over_those_of_a_size(size):
    model = config.resolve("models", "unet", size=size, in_channels=3, heads=2, norm_groups=4)
    assert {layer.heads for layer in model.layers} == {0, 2}
    assert model.style.groups == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "ADM"}, "did you mean 'ADM-64'"),
        ({"heads": 2}, "give one of them"),
        ({"head_size": 12}, "heads must divide"),
        ({"head_size": 32}, "heads must divide"),
        ({"head_size": None, "heads": 3}, "heads must divide"),
        ({"head_size": 1, "temporal": True}, "temporal needs even"),
        ({"width": 10}, "multiple of norm_groups=4"),
        ({"multipliers": ()}, "give one a level"),
        ({"attention_levels": (2,)}, "there are 2 levels"),
        ({"temporal": (2,)}, "there are 2 levels"),
        ({"dtype": "float31"}, "did you mean 'float32'"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"attention": "cdnn"}, "did you mean 'cudnn'"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)
    with pytest.raises(UserError, match="also: depth, width, multipliers"):
        config.resolve("models", "unet", in_channels=3)


def test_inputs_that_do_not_fit_are_refused():
    x, t, cond = clips()
    cases = [
        (x[..., :1], t, cond, "expected \\(batch, frames"),
        (x[:, :, :3], t, cond, "2 levels halves them 1 times"),
        (x, t[:, :2], cond, "for one a pixel"),
        (x, t[..., None], cond, "for one a pixel"),
        (x, t, cond.replace(label=None), "Cond.label is missing"),
        (x, t, cond.replace(guidance=t[:, 0]), "without guidance_input"),
        (x, t, cond.replace(context=cond.context[..., :3]), "expected \\(2, length, 7"),
        (x, t, cond.replace(concat=cond.concat[:, :1]), "expected \\(2, 3, 4, 8, 1\\)"),
    ]
    params = params_of(CLIP, SHAPE)
    for x_, t_, cond_, message in cases:
        with pytest.raises(UserError, match=message):
            jax.eval_shape(models.apply_fn(CLIP), params, x_, t_, cond_)
    with pytest.raises(UserError, match="without context_dim"):
        models.apply_fn(tiny(num_classes=5))(params, x, t, cond.replace(concat=None))


@pytest.mark.slow
def test_a_ladder_has_sizes_near_those_asked_for():
    """By the depth and width that a transformer's ladder varies."""
    options = {"multipliers": (1, 2), "attention_levels": (1,), "norm_groups": 8}
    sizes = ladder(
        (1, 8, 8, 1),
        smallest=1e5,
        largest=1e6,
        count=3,
        head_dim=8,
        aspect=16.0,
        network="unet",
        **options,
    )
    for size, target in zip(sizes, np.geomspace(1e5, 1e6, 3), strict=True):
        assert 1 / 1.8 < size.N / target < 1.8
        model = config.resolve("models", "unet", in_channels=1, **size.kwargs, **options)
        assert models.count_params(abstract(model, (1, 8, 8, 1))) == size.costs.parameters
