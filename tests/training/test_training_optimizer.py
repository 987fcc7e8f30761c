"""Schedules by their values, optimizers by their maths: what decays, what Muon turns orthogonal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_tiny as tiny

from dit import config
from dit.training import optimizer as optimizers
from dit.training.optimizers import decayed, groups
from dit.training.optimizers.muon import matrix_dimensions
from dit.types import UserError

CONSTANT = {"name": "constant"}
NAMES = config.names("training.optimizers")


def build(name="adamw", schedule=CONSTANT, steps=100, axes=tiny.AXES, **kwargs):
    return optimizers.build({"name": name, "lr": 0.1, **kwargs}, schedule, steps=steps, axes=axes)


def rates(steps_, **schedule):
    made = optimizers.build_schedule(schedule, lr=2.0, steps=100)
    return [float(made(s)) for s in steps_]


def test_constant():
    assert rates([0, 50, 1000], name="constant") == [2, 2, 2]


def test_warmup_constant():
    np.testing.assert_allclose(
        rates([0, 4, 9, 10, 500], name="warmup_constant", warmup=10), [0.2, 1, 2, 2, 2], rtol=1e-6
    )


def test_warmup_cosine():
    got = rates([0, 19, 20, 40, 60, 100, 200], name="warmup_cosine", warmup=20, final=0.1)
    quarter = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(got, [0.1, 2, 2, 2 * quarter, 1.1, 0.2, 0.2], rtol=1e-5)


def test_wsd():
    got = rates([0, 9, 50, 80, 90, 100], name="wsd", warmup=10, decay=0.2, shape="linear")
    np.testing.assert_allclose(got, [0.2, 2, 2, 2, 1, 0], atol=1e-6)
    got = rates([80, 85, 100], name="wsd", warmup=10, decay=0.2, shape="sqrt", final=0.5)
    np.testing.assert_allclose(got, [2, 1.5, 1], atol=1e-6)


@pytest.mark.parametrize("name", config.names("training.schedules"))
def test_every_schedule_runs_under_jit_and_is_never_negative(name):
    made = optimizers.build_schedule({"name": name}, lr=1.0, steps=3000)
    values = jax.jit(jax.vmap(made))(jnp.arange(3001))
    assert np.all((np.asarray(values) >= 0) & (np.asarray(values) <= 1))
    longer = optimizers.build_schedule({"name": name}, lr=1.0, steps=6000)
    same = np.array_equal(values, jax.vmap(longer)(jnp.arange(3001)))
    assert same != optimizers.depends_on_steps(name)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "message"),
    [
        ({"name": "adamv", "lr": 1.0}, CONSTANT, "did you mean 'adam"),
        ({"name": "adamw", "lr": 1.0, "beta": 1.0}, CONSTANT, "unknown keyword 'beta'"),
        ({"name": "adamw", "lr": -1.0}, CONSTANT, "optimizer.lr=-1.0"),
        ({"name": "adamw", "lr": float("nan")}, CONSTANT, "finite"),
        ({"name": "adamw", "lr": "fast"}, CONSTANT, "optimizer.lr='fast'"),
        ({"name": "adamw", "lr": 1.0, "clip": 0.0}, CONSTANT, "optimizer.clip"),
        ({"name": "adamw", "lr": 1.0, "accumulate": 1.5}, CONSTANT, "whole number"),
        ({"name": "adamw", "lr": 1.0}, {"name": "constant", "lr": 1.0}, "optimizer.lr"),
        ({"name": "adamw", "lr": 1.0}, {"name": "warmup_cosine", "warmup": 100}, "fewer than"),
        ({"name": "adamw", "lr": 1.0}, {"name": "wsd", "warmup": 50, "decay": 0.6}, "room"),
        ({"name": "adamw", "lr": 1.0}, {"name": "wsd", "steps": 5}, "set steps"),
    ],
)
def test_bad_sections_are_refused(optimizer, schedule, message):
    with pytest.raises(UserError, match=message):
        optimizers.build(optimizer, schedule, steps=100, axes=tiny.AXES)


def ones():
    return jax.tree.map(lambda s: np.ones(s, np.float32), tiny.SHAPES, is_leaf=tiny.is_shape)


def test_groups_are_the_axes_of_one_matrix():
    assert groups(("layers", "embed", None, "heads", "head_dim")) == [(1,), (3, 4)]
    assert groups(("layers", None, "heads", "head_dim")) == [(2, 3)]
    assert groups(("heads", "head_dim", "embed")) == [(0, 1), (2,)]


def test_only_linear_maps_decay():
    mask = decayed(tiny.AXES)
    maps = (mask["in"], mask["out"], *mask["blocks"].values())
    assert all(m["kernel"] and not m["bias"] for m in maps)
    assert not mask["label"]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("adam", "sgd")])
def test_weight_decay_shrinks_what_decays_by_the_rate(name):
    made = build(name, weight_decay=0.5)
    params = ones()
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(made.transform.update)(zeros, made.transform.init(params), params)
    for update, mask in zip(
        jax.tree.leaves(updates), jax.tree.leaves(decayed(tiny.AXES)), strict=True
    ):
        np.testing.assert_allclose(update, -0.05 if mask else 0.0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(name):
    made = build(name, schedule={"name": "warmup_constant", "warmup": 3})
    params = ones()
    state = made.transform.init(params)
    loss = lambda p: sum(jnp.square(x - 0.5).mean() for x in jax.tree.leaves(p))  # noqa: E731

    @jax.jit
    def step(params, state):
        updates, state = made.transform.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    first = float(loss(params))
    for _ in range(20):
        params, state = step(params, state)
    assert float(loss(params)) < first


def test_adamw_follows_the_paper():
    made = build(
        "adamw", betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1, axes={"w": ("embed", "mlp")}
    )
    draw = np.random.default_rng(0).standard_normal
    p, m, v = draw((4, 5)), 0.0, 0.0
    params = {"w": p.astype(np.float32)}
    state, update = made.transform.init(params), jax.jit(made.transform.update)
    for i in range(1, 4):
        g = draw((4, 5))
        updates, state = update({"w": g.astype(np.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        hat = (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.99**i)) + 1e-6)
        p = p - 0.1 * (hat + 0.1 * p)
    np.testing.assert_allclose(params["w"], p, rtol=2e-5)


AXES = {
    "qkv": ("layers", "embed", None, "heads", "head_dim"),
    "out": ("layers", "heads", "head_dim", "embed"),
    "bias": ("layers", "embed"),
    "first": ("patch", "embed"),
}
SHAPES = {"qkv": (2, 12, 3, 2, 8), "out": (2, 2, 8, 12), "bias": (2, 12), "first": (4, 12)}


def test_muon_makes_every_matrix_of_every_layer_orthogonal_and_touches_nothing_else():
    draw = np.random.default_rng(0).standard_normal
    gradient = {k: draw(shape).astype(np.float32) for k, shape in SHAPES.items()}
    gradient["qkv"][1] *= 3.0  # of another size than the first layer
    params = jax.tree.map(np.zeros_like, gradient)
    made = build("muon", axes=AXES, momentum=0.0, nesterov=False, rms=None)
    updates, _ = jax.jit(made.transform.update)(gradient, made.transform.init(params), params)
    matrices = [
        *np.asarray(updates["qkv"]).transpose(0, 2, 1, 3, 4).reshape(6, 12, 16),
        *np.asarray(updates["out"]).reshape(2, 16, 12),
    ]
    sources = [
        *np.asarray(gradient["qkv"]).transpose(0, 2, 1, 3, 4).reshape(6, 12, 16),
        *np.asarray(gradient["out"]).reshape(2, 16, 12),
    ]
    for update, g in zip(matrices, sources, strict=True):
        scale = 0.1 * np.sqrt(max(1, g.shape[1] / g.shape[0]))
        values = np.linalg.svd(update, compute_uv=False) / scale
        assert values.min() > 0.6  # Newton-Schulz of order five: all singular values near one
        assert values.max() < 1.3
        u, _, vh = np.linalg.svd(g, full_matrices=False)
        assert np.sum(-update * (u @ vh)) / (scale * len(values)) > 0.7  # along the polar factor
    for name in ("bias", "first"):  # Adam's first update is the sign of the gradient
        np.testing.assert_allclose(updates[name], -0.1 * np.sign(gradient[name]), rtol=1e-4)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("base_width", [None, 6])
def test_what_muon_leaves_alone_is_updated_by_adamw(nesterov, base_width):
    """Every such leaf, over several steps, with warmup, decay and muP: the update is AdamW's own."""
    axes = {**AXES, "table": ("classes", "embed"), "last": ("embed", "patch"), "norm": ("norm",)}
    shapes = {**SHAPES, "table": (5, 12), "last": (12, 4), "norm": (12,)}
    shared = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "axes": axes}
    shared |= {"schedule": {"name": "warmup_constant", "warmup": 3}, "mup_base_width": base_width}
    draw = np.random.default_rng(0).standard_normal
    params = {k: draw(shape).astype(np.float32) for k, shape in shapes.items()}
    both = [build("muon", nesterov=nesterov, **shared), build("adamw", **shared)]
    states = [made.transform.init(params) for made in both]
    for _ in range(4):
        g = {k: draw(shape).astype(np.float32) for k, shape in shapes.items()}
        found = []
        for i, made in enumerate(both):
            updates, states[i] = made.transform.update(g, states[i], params)
            found.append(updates)
        for name, names in axes.items():
            if matrix_dimensions(names) is None:
                np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5)
            else:
                assert np.abs(found[0][name] - found[1][name]).max() > 1e-4


def test_muon_takes_a_convolution_as_one_matrix_where_no_layers_are_stacked():
    axes = {
        "first": ("spatial", "spatial", "patch", "embed"),
        "hidden": ("spatial", "spatial", "embed", "mlp"),
        "last": ("spatial", "spatial", "mlp", "patch"),
    }
    shapes = {"first": (3, 3, 2, 8), "hidden": (3, 3, 8, 16), "last": (3, 3, 16, 2)}
    draw = np.random.default_rng(0).standard_normal
    gradient = {k: draw(shape).astype(np.float32) for k, shape in shapes.items()}
    made = build("muon", axes=axes, momentum=0.0, nesterov=False, rms=None)
    updates, _ = jax.jit(made.transform.update)(gradient, made.transform.init(gradient), gradient)
    values = np.linalg.svd(np.reshape(updates["hidden"], (72, 16)), compute_uv=False) / 0.1
    assert values.min() > 0.6
    assert values.max() < 1.3
    for name in ("first", "last"):
        np.testing.assert_allclose(updates[name], -0.1 * np.sign(gradient[name]), rtol=1e-4)


def test_muon_updates_have_the_size_of_adamw_ones():
    g = {"w": np.random.default_rng(0).standard_normal((2, 64, 256)).astype(np.float32)}
    made = build("muon", axes={"w": ("layers", "embed", "mlp")}, momentum=0.0, nesterov=False)
    updates, _ = jax.jit(made.transform.update)(g, made.transform.init(g), g)
    rms = jnp.sqrt(jnp.square(updates["w"]).mean((1, 2)))
    np.testing.assert_allclose(rms, 0.1 * 0.2, rtol=0.15)


def test_muon_leaves_tables_and_single_layers_alone():
    assert matrix_dimensions(("classes", "embed")) is None
    assert matrix_dimensions(("embed", "patch")) is None
    assert matrix_dimensions(("layers", "mlp")) is None
    assert matrix_dimensions(("layers", "mlp", "embed")) == ((1,), (2,))


def test_clipping_scales_to_the_norm_and_no_further():
    made = build(clip=2.0)
    assert float(made.clip_scale(jnp.float32(8.0))) == 0.25
    assert float(made.clip_scale(jnp.float32(1.0))) == 1.0
    assert float(made.clip_scale(jnp.float32(0.0))) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_at_a_rate_is_one_built_for_it(name):
    schedule = {"name": "warmup_constant", "warmup": 3}
    params = tiny.init_params(jax.random.key(0))
    grads = jax.tree.map(lambda p: 1e-2 * jnp.cos(9.1 * p), params)

    @jax.jit
    def both(rate):
        pair = (
            build(name, schedule, lr=0.3),
            optimizers.at_rate(build(name, schedule, lr=1.0), rate),
        )
        return [
            (o.transform.update(grads, o.transform.init(params), params)[0], o.schedule(1))
            for o in pair
        ]

    built, at_rate = both(jnp.float32(0.3))
    for a, b in zip(jax.tree.leaves(built), jax.tree.leaves(at_rate), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
