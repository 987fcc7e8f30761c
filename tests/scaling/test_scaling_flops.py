"""FLOPs counted from shapes equal those in the program, and the published numbers."""

import jax
import jax.numpy as jnp
import pytest

from dit import config, models
from dit.scaling.costs import costs
from dit.scaling.flops import forward_flops, forward_parts, training_flops
from dit.scaling.jaxpr_flops import count_flops
from dit.types import UserError

LEVELS = {"sample": 0, "frame": 1, "token": 3}
PUBLISHED = {  # multiply-adds in 1e9 at 256 pixels, latents of 32x32x4 (Peebles & Xie 2023)
    "S/2": 6.06,
    "S/4": 1.41,
    "S/8": 0.36,
    "B/2": 23.01,
    "B/4": 5.56,
    "B/8": 1.42,
    "L/2": 80.71,
    "L/4": 19.70,
    "L/8": 5.01,
    "XL/2": 118.64,
    "XL/4": 29.05,
    "XL/8": 7.39,
}


@pytest.mark.first
@pytest.mark.parametrize("level", ["sample", "frame", "token"])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("block", config.names("models.blocks"))
def test_count_equals_the_products_in_the_program(block, context, level):
    shape = (4, 6, 8, 3)
    model = config.resolve(
        "models",
        "dit",
        depth=3,
        width=24,
        heads=2,
        patch=(2, 2, 2),
        in_channels=3,
        learn_sigma=True,
        num_classes=5,
        context_dim=7 if context else None,
        pooled_dim=9 if context else None,
        second_time=not context,
        guidance_input=bool(context),
        concat_channels=None if context else 2,
        block=block,
        attention="xla",
        unroll=1,
    )
    params = jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))
    x, _, cond = model.example(shape)
    t = jnp.zeros({"sample": (1,), "frame": (1, 4), "token": (1, 4, 6, 8)}[level])
    more = {"context": jnp.zeros((1, context, 7))} if context else {"r": t}
    cond = cond.replace(**more, drop=jnp.zeros((1,), bool))

    @jax.jit  # traced once
    def total(params):
        return models.apply_fn(model)(params, x, t, cond).sum()

    found = costs(model, shape, context, level)
    assert found.forward == forward_flops(model, shape, context, level)
    assert found.forward == count_flops(total, params)
    assert found.training == count_flops(jax.grad(total), params)
    assert found.parameters == models.count_params(params)


def test_loops_count_as_often_as_they_run_and_unknown_ones_are_refused():
    x = jnp.ones((3, 3))

    def looped(x):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, x), None), x, length=5)[0]

    assert count_flops(looped, x) == 5 * 2 * 27
    assert count_flops(lambda x: jax.lax.cond(x[0, 0] > 0, jnp.matmul, jnp.add, x, x), x) == 2 * 27
    with pytest.raises(UserError, match="while loop"):
        count_flops(lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ x, x), x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_sums_over_its_window_and_so_do_its_gradients(stride, groups):
    x, kernel = jnp.ones((2, 8, 6, 4)), jnp.ones((3, 3, 4 // groups, 10))

    def convolved(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=numbers,
            feature_group_count=groups,
        )

    expected = 2 * (2 * 8 * 6 // stride**2) * 10 * 9 * (4 // groups)
    assert count_flops(convolved, x, kernel) == expected
    for argument in (0, 1):
        gradient = jax.grad(lambda *args: convolved(*args).sum(), argument)
        assert count_flops(gradient, x, kernel) == 2 * expected


def test_a_body_split_over_devices_counts_for_all_of_them():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")
    split = jax.shard_map(lambda x, y: x @ y, mesh=mesh, in_specs=(rows, jax.P()), out_specs=rows)
    assert count_flops(split, jnp.ones((8, 3)), jnp.ones((3, 5))) == 2 * 8 * 3 * 5


def test_parameters_of_a_sample_and_of_a_token_apart():
    """XL/2: a block has 12 d^2 for tokens and 6 d^2 of modulation, which 6 N D counts a token each."""
    model = config.resolve(
        "models", "dit", size="XL/2", in_channels=4, learn_sigma=True, num_classes=1000
    )
    found = costs(model, (1, 32, 32, 4))
    assert found.parameters / 1e6 == pytest.approx(675.1 - 1152 * 256 / 1e6, rel=1e-3)
    assert found.tokens == 256
    d = 1152
    inside = 28 * (12 * d * d + 9 * d)  # biases: 3 d, d, 4 d, d
    assert found.per_token == inside + (16 + 1) * d + (d + 1) * 32
    assert 1.2 < 6 * found.parameters * 256 / found.training < 1.5


@pytest.mark.parametrize(("size", "gmacs"), PUBLISHED.items())
def test_published_counts(size, gmacs):
    model = config.resolve(
        "models", "dit", size=size, in_channels=4, learn_sigma=True, num_classes=1000
    )
    assert forward_flops(model, (1, 32, 32, 4)) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_published_count_at_512_pixels():
    model = config.resolve(
        "models", "dit", size="XL/2", in_channels=4, learn_sigma=True, num_classes=1000
    )
    assert forward_flops(model, (1, 64, 64, 4)) / 2e9 == pytest.approx(524.5, rel=0.01)


def test_training_is_three_passes_and_parts_add_up():
    model = config.resolve("models", "dit", size="S/8", in_channels=4)
    shape = (1, 32, 32, 4)
    assert training_flops(model, shape) == 3 * sum(forward_parts(model, shape).values())
