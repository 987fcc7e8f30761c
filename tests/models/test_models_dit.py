"""The model as a whole: sizes, initialisation, equivalences and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import BLOCKS, SHAPE, abstract, inputs, params_of, quick, run, tiny

from dit import config, models
from dit.models import remat, stack
from dit.models.patchify import patchify, positions
from dit.types import Cond, Tokens, UserError

COUNTS = {  # trainable parameters of the original, for 4 channels, 1000 classes, learned variance
    "S/2": 32_865_056,
    "S/4": 32_920_448,
    "S/8": 33_142_016,
    "B/2": 130_315_808,
    "B/4": 130_426_496,
    "B/8": 130_869_248,
    "L/2": 457_840_672,
    "L/4": 457_988_224,
    "L/8": 458_578_432,
    "XL/2": 674_834_720,
    "XL/4": 675_000_704,
    "XL/8": 675_664_640,
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts_of_the_paper(size):
    model = config.resolve(
        "models", "dit", size=size, in_channels=4, learn_sigma=True, num_classes=1000
    )
    assert models.count_params(abstract(model, (1, 32, 32, 4))) == COUNTS[size]


def test_explicit_numbers_override_the_size():
    model = config.resolve("models", "dit", size="S/2", depth=3, patch=(2, 4, 4), in_channels=4)
    assert (model.depth, model.width, model.patch) == (3, 384, (2, 4, 4))


def test_lightning_dit_xl1_can_be_said():
    model = config.resolve(
        "models",
        "dit",
        size="XL/1",
        in_channels=32,
        num_classes=1000,
        block="modern",
        positions="sincos+rope",
        rope_axes=(0, 36, 36),
    )
    params = abstract(model, (1, 16, 16, 32))
    assert params["blocks"]["mlp"]["in"]["kernel"].shape == (28, 1152, 2, 3072)
    assert params["blocks"]["attention"]["q_norm"]["scale"].shape == (28, 72)
    d, h = 1152, 3072
    block = d * 4 * d + 4 * d + 3 * d * h + 2 * h + d + 6 * d * d + 6 * d + 2 * d + 2 * 72
    ends = 32 * d + d + 256 * d + d + d * d + d + 1001 * d + 2 * d * d + 2 * d + d + 32 * d + 32
    assert models.count_params(params) == 28 * block + ends


def test_initialisation_is_the_originals():
    """Xavier-uniform kernels (Glorot & Bengio 2010), N(0, 0.02) embeddings, zero gates and output."""
    model = tiny(width=96, heads=4, depth=3, num_classes=500, patch=4)
    params = quick(lambda key: models.init(model, key, (1, 8, 8, 3)))(jax.random.key(0))
    params = jax.device_get(params)  # np.std and np.any compile of jax.Array
    blocks = params["blocks"]
    kernels = {
        "embed": (params["embed"]["kernel"], 48, 96),
        "qkv": (blocks["attention"]["qkv"]["kernel"], 96, 288),
        "out": (blocks["attention"]["out"]["kernel"], 96, 96),
        "in": (blocks["mlp"]["in"]["kernel"], 96, 384),
        "mlp": (blocks["mlp"]["out"]["kernel"], 384, 96),
    }
    for name, (kernel, fan_in, fan_out) in kernels.items():
        bound = np.sqrt(6 / (fan_in + fan_out))
        assert 0.99 * bound < np.abs(kernel).max() <= bound, name
        assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.03), name
    for table in (params["label"]["table"], *(params["time"][k]["kernel"] for k in ("in", "out"))):
        assert np.std(table) == pytest.approx(0.02, rel=0.03)
    for zero in (blocks["modulation"], params["final"]):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))
    biases = [p for path, p in jax.tree.leaves_with_path(params) if path[-1].key == "bias"]
    assert len(biases) == 10
    assert not any(np.any(b) for b in biases)
    layers = np.asarray(blocks["mlp"]["in"]["kernel"])
    assert not np.array_equal(layers[0], layers[1])


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_output_is_zero_at_initialisation(block):
    model = tiny(block, learn_sigma=True)
    params = quick(lambda key: models.init(model, key, SHAPE))(jax.random.key(0))
    out = run(model, params, *inputs())
    assert out.shape == (2, 2, 4, 6, 6)
    assert not np.any(out)


@pytest.mark.parametrize("block", ["adaln_zero", "modern"])
def test_an_image_is_a_video_with_one_frame(block):
    """The first frame's tokens have the image's positions, so frames that see only themselves agree."""
    model = tiny(block, frame_causal=True, positions="sincos+rope")
    params = params_of(model)
    x, t, cond = inputs()
    image = run(model, params, x[:, :1], t, cond)
    video = run(model, params, x, t, cond)
    np.testing.assert_allclose(video[:, :1], image, atol=2e-5)
    assert np.abs(video[:, 1:] - run(model, params, x[:, 1:], t, cond)).max() > 1e-3


@pytest.mark.parametrize("block", BLOCKS)
def test_frame_causal_models_do_not_look_ahead(block):
    model = tiny(block, frame_causal=True)
    params = params_of(model)
    x, t, cond = inputs()
    out = run(model, params, x, t, cond)
    other = run(model, params, x.at[:, 1].add(1.0), t, cond)
    np.testing.assert_allclose(out[:, 0], other[:, 0], atol=1e-6)
    assert np.abs(out[:, 1] - other[:, 1]).max() > 1e-3
    other = run(model, params, x.at[:, 0].add(1.0), t, cond)
    assert np.abs(out[:, 1] - other[:, 1]).max() > 1e-4


def test_scanned_and_unrolled_are_the_same_function_of_the_same_tree():
    model = tiny(depth=4)
    params, (x, t, cond) = params_of(model), inputs()
    outs = {}
    for unroll in (False, 2, True):
        other = model.clone(unroll=unroll)
        assert abstract(other) == abstract(model)
        outs[unroll] = run(other, params, x, t, cond)
        loops = str(jax.make_jaxpr(models.apply_fn(other))(params, x, t, cond)).count("scan[")
        assert loops == (unroll is not True)
    for out in outs.values():
        np.testing.assert_allclose(out, outs[False], atol=1e-5)


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 0), ("gpu", 0), ("tpu", 1)])
def test_layers_are_a_loop_where_that_is_faster(monkeypatch, platform, loops):
    """On GPUs a loop copies what the backward pass needs: half again the time, and twice the memory."""
    monkeypatch.setattr(stack, "platform", lambda: platform)
    model = tiny(unroll="auto", attention="xla")
    program = str(jax.make_jaxpr(models.apply_fn(model))(params_of(model), *inputs()))
    assert program.count("scan[") == loops


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_layers_taken_apart_are_the_same_model(block):
    model = tiny(block)
    params = params_of(model)
    apart = models.unstack(model, params)
    assert models.count_params(apart) == models.count_params(params)
    out = run(model, apart, *inputs())
    np.testing.assert_allclose(out, run(model, params, *inputs()), atol=1e-5)


@pytest.mark.first
@pytest.mark.parametrize("policy", [p for p in remat.POLICIES if p != "none"])
@pytest.mark.parametrize("unroll", [pytest.param(True, marks=pytest.mark.slow), False])
def test_remat_changes_no_gradient(policy, unroll):
    model = tiny(unroll=unroll, attention="xla")
    params, (x, t, cond) = params_of(model), inputs()

    def grads(model):
        def loss(p):
            return jnp.square(models.apply_fn(model)(p, x, t, cond)).mean()

        return quick(jax.grad(loss))(params)

    got, expected = grads(model.clone(remat=policy)), grads(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5), got, expected)


@pytest.mark.first
@pytest.mark.parametrize("block", [b for b in BLOCKS if b != "adaln_zero"])
def test_how_layers_are_run_changes_no_gradient_of_any_block(block):
    """Scanned with rematerialisation, and unrolled without."""
    params, (x, t, cond) = params_of(tiny(block)), inputs()

    def grads(**options):
        model = tiny(block, attention="xla", **options)

        def loss(p, x, t):
            return jnp.square(models.apply_fn(model)(p, x, t, cond)).mean()

        return quick(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, x, t)

    got, expected = grads(unroll=False, remat="dots"), grads(unroll=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5), got, expected)


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_is_close_to_float32(block):
    params, (x, t, cond) = params_of(tiny(block), noise=0.1), inputs()
    full = run(tiny(block), params, x, t, cond)
    half = run(tiny(block, dtype="bfloat16", attention="xla"), params, x, t, cond)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_unpatchify_puts_the_variance_in_the_second_half():
    """The last layer's bias alone: channel k of every pixel is the bias of output k."""
    model = tiny(learn_sigma=True, patch=(1, 2, 2))
    bias = jnp.arange(24.0)
    params = params_of(model)
    last = {"kernel": jnp.zeros((24, 24)), "bias": bias}
    params = params | {"final": params["final"] | {"linear": last}}
    out = run(model, params, *inputs())
    np.testing.assert_array_equal(out[0, 0, 0, 0], bias[:6])
    np.testing.assert_array_equal(out[0, 1, 3, 5], bias[18:])


def test_segments_isolate_packed_samples():
    """Two images in one row of tokens, each with its own time, equal the two images alone."""
    model = tiny(positions="sincos+rope", num_classes=None)
    params = params_of(model, (1, 4, 6, 3))
    x, t, _ = inputs(shape=(1, 4, 6, 3))
    alone = run(model, params, x, t, Cond())
    rows, position = patchify(x, (1, 2, 2)), positions((1, 4, 6), (1, 2, 2))
    packed = Tokens(
        x=rows.reshape(1, 12, 12),
        position=jnp.concatenate([position, position], axis=1),
        segment=jnp.repeat(jnp.arange(2), 6)[None],
        row=jnp.repeat(jnp.arange(2), 6)[None],
    )
    apply = quick(lambda p, *a: model.apply({"params": p}, *a, method="transform"))
    out = apply(params, packed, t[None], Cond())
    np.testing.assert_allclose(out.reshape(2, 6, 12), patchify(alone, (1, 2, 2)), atol=1e-5)
    mixed = apply(params, packed.replace(segment=None), t[None], Cond())
    assert np.abs(mixed - out).max() > 1e-2


def test_logical_axes_name_every_axis():
    model = tiny("modern", context_dim=7)
    params, axes = abstract(model, SHAPE), models.logical_axes(model, SHAPE)
    named = jax.tree.map(lambda p, names: len(names) == p.ndim, params, axes)
    assert all(jax.tree.leaves(named))
    assert axes["blocks"]["attention"]["qkv"]["kernel"] == (
        "layers",
        "embed",
        None,
        "heads",
        "head_dim",
    )
    assert axes["embed"]["kernel"] == ("patch", "embed")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"heads": 5}, "heads must divide"),
        ({"size": "XXL/2"}, "XXL/2"),
        ({"depth": 0}, "depth=0"),
        ({"patch": (2, 2)}, "patch|type tuple"),
        ({"block": "adaln_one"}, "did you mean 'adaln_zero'"),
        ({"positions": "learned"}, "sincos"),
        ({"remat": "half"}, "remat"),
        ({"attention": "flash"}, "attention"),
        ({"dtype": "float8"}, "dtype"),
        ({"unroll": "yes"}, "unroll"),
        ({"width": 22}, "multiple of 4"),
        ({"positions": "rope", "rope_axes": (4, 4, 2)}, "rope_axes"),
        ({"quirks": "timm"}, "quirks"),
        ({"norm_eps": -1.0}, "norm_eps"),
        ({"layers": 3}, "layers"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        tiny(**kwargs)


def test_a_model_without_numbers_says_which_are_missing():
    with pytest.raises(UserError, match="depth, width, heads"):
        config.resolve("models", "dit", in_channels=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, c: (x[..., :2], t, c), "expected .*3"),
        (lambda x, t, c: (x[:, 0], t, c), "one frame"),
        (lambda x, t, c: (x[:, :, :3], t, c), "cannot be cut"),
        (lambda x, t, c: (x, t[:1], c), "t of shape"),
        (lambda x, t, c: (x, t, c.replace(label=None)), "label is missing"),
        (lambda x, t, c: (x, t, c.replace(context=None)), "context is missing"),
        (lambda x, t, c: (x, t, c.replace(context=c.context[..., :3])), "context of shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    model = tiny(context_dim=7)
    params = abstract(model, SHAPE)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(models.apply_fn(model), params, *change(*inputs(context=3)))


def test_conditions_without_a_place_are_refused():
    x, t, cond = inputs(context=3)
    model = tiny(num_classes=None)
    with pytest.raises(UserError, match="without num_classes"):
        jax.eval_shape(models.apply_fn(model), abstract(model, SHAPE), x, t, cond)
    model = tiny()
    with pytest.raises(UserError, match="without context_dim"):
        jax.eval_shape(models.apply_fn(model), abstract(model, SHAPE), x, t, cond)


def test_labels_out_of_range_are_found_before_they_are_clamped():
    models.check_labels(np.array([0, 4]), 5)
    for bad in ([5], [0, -1]):
        with pytest.raises(UserError, match="0 to 4"):
            models.check_labels(np.array(bad), 5)
