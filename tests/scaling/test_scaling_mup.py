"""muP: multipliers by the paper's table, equality at the base size, and the coordinate check."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import models
from dit.config import resolve
from dit.diffusion.process import Process
from dit.experiment import build
from dit.parallel.rules import is_axes
from dit.scaling import mup
from dit.scaling import rate_sweep as sweeps
from dit.training import optimizer as optimizers
from dit.training.transfer import (
    Transfer,
    init_multipliers,
    labels,
    of_section,
    rate_multipliers,
    scale_init,
)
from dit.types import UserError

SHAPE = (1, 8, 8, 1)


def make(width, depth=2, block="adaln_zero", **kwargs):
    options = {"heads": width // 16, "in_channels": 1, "num_classes": 10, "patch": 2, **kwargs}
    return resolve("models", "dit", depth=depth, width=width, block=block, **options)


def make_unet(width, depth=1):
    options = {"in_channels": 1, "num_classes": 10, "head_size": 8, "norm_groups": 4}
    return resolve("models", "unet", width=width, depth=depth, multipliers=(1,), **options)


def tree(width, depth, block="adaln_zero", **kwargs):
    model = make(width, depth, block, **kwargs)
    shapes = jax.eval_shape(lambda key: models.init(model, key, SHAPE), jax.random.key(0))
    return models.logical_axes(model, SHAPE), shapes


def flat(values):
    paths = jax.tree_util.tree_leaves_with_path(values)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in paths}


def test_every_parameter_has_its_kind():
    axes, _ = tree(64, 2, "cross_attention", context_dim=7)
    found = flat(labels(axes))
    expected = {
        "embed/kernel": "input",
        "time/in/kernel": "input",
        "time/out/kernel": "hidden",
        "label/table": "input",
        "context/linear/kernel": "input",
        "context/null": "vector",
        "blocks/attention/qkv/kernel": "hidden",
        "blocks/cross/kv/kernel": "hidden",
        "blocks/mlp/in/bias": "vector",
        "blocks/norm_mlp/scale": "vector",
        "final/linear/kernel": "output",
    }
    assert {name: found[name] for name in expected} == expected


def test_every_parameter_of_a_unet_has_its_kind():
    found = flat(labels(models.logical_axes(make_unet(8), (1, 4, 4, 1))))
    expected = {
        "embed/kernel": "input",
        "time/in/kernel": "hidden",  # from as many sinusoids as channels
        "time/out/kernel": "hidden",
        "label/table": "input",
        "down_0_0/block/conv_in/kernel": "hidden",
        "down_0_0/block/conv_out/kernel": "hidden",
        "down_0_0/block/modulation/kernel": "hidden",
        "up_0_1/block/shortcut/kernel": "hidden",
        "middle_0/space/attention/qkv/kernel": "hidden",
        "middle_0/space/norm/scale": "vector",
        "final/kernel": "output",
    }
    assert {name: found[name] for name in expected} == expected
    assert {kind for name, kind in found.items() if name.endswith(("bias", "scale"))} == {"vector"}


def test_multipliers_follow_the_table():
    axes, shapes = tree(128, 4)
    transfer = Transfer(base_width=32, base_depth=2)
    rates = flat(rate_multipliers(transfer, axes, shapes))
    start = flat(init_multipliers(transfer, axes, shapes))
    assert rates["blocks/mlp/in/kernel"] == 1 / 4
    assert rates["blocks/mlp/out/kernel"] == 1 / 8  # width, and half a branch at twice the depth
    assert rates["blocks/mlp/in/bias"] == rates["embed/kernel"] == rates["label/table"] == 1
    assert rates["final/linear/kernel"] == rates["time/out/kernel"] == 1 / 4
    assert start["blocks/mlp/in/kernel"] == 1  # already drawn in proportion to 1 / sqrt(fan_in)
    assert start["blocks/attention/out/kernel"] == 1 / 2
    assert start["time/out/kernel"] == 1 / 2
    assert start["embed/kernel"] == pytest.approx(np.sqrt((4 + 128) / (4 + 32)))
    root = flat(rate_multipliers(Transfer(base_depth=1, depth_power=0.5), axes, shapes))
    assert root["blocks/mlp/in/kernel"] == 1 / 2
    assert root["blocks/mlp/out/kernel"] == 1 / 4
    assert root["embed/kernel"] == 1


AXES = {
    "embed": {"kernel": ("patch", "embed")},
    "blocks": {
        "mlp": {
            "in": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
            "out": {"kernel": ("layers", "mlp", "embed")},
        }
    },
    "final": {"kernel": ("embed", "patch")},
}
SIZES = {"layers": 2, "patch": 4, "embed": 16, "mlp": 64}


def arrays(seed):
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(
        lambda names: draw([SIZES[n] for n in names]).astype(np.float32), AXES, is_leaf=is_axes
    )


def updates(name, grads, **options):
    section = {"name": name, "lr": 0.1, **options}
    made = optimizers.build(section, {"name": "constant"}, steps=1, axes=AXES).transform
    params = arrays(1)
    return flat(jax.jit(made.update)(grads, made.init(params), params)[0])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_at_the_base_size_nothing_changes(name):
    grads = arrays(0)
    plain = updates(name, grads, weight_decay=0.1)
    based = updates(name, grads, weight_decay=0.1, mup_base_width=16, mup_base_depth=2)
    for key in plain:
        np.testing.assert_allclose(plain[key], based[key], rtol=1e-5, atol=1e-8)
    for factor in jax.tree.leaves(init_multipliers(Transfer(16, 2), AXES, grads)):
        assert factor == pytest.approx(1)


@pytest.mark.parametrize(("name", "power"), [("adamw", 1.0), ("muon", 0.5)])
def test_rates_shrink_and_decay_does_not(name, power):
    grads = arrays(0)
    plain, scaled = updates(name, grads), updates(name, grads, mup_base_width=4)
    factors = {
        "blocks/mlp/in/kernel": 4**-power,
        "blocks/mlp/in/bias": 1,
        "embed/kernel": 1,
        "final/kernel": 1 / 4,
    }
    for key, factor in factors.items():
        np.testing.assert_allclose(scaled[key], plain[key] * factor, rtol=1e-5, atol=1e-8)
    zeros = jax.tree.map(np.zeros_like, grads)
    decay = updates(name, zeros, mup_base_width=4, weight_decay=0.5)
    kernel = "blocks/mlp/in/kernel"
    np.testing.assert_allclose(decay[kernel], -0.05 * flat(arrays(1))[kernel], atol=1e-6)


def test_muons_own_scale_needs_no_correction_of_hidden_matrices():
    plain, scaled = (
        updates("muon", arrays(0), rms=None, mup_base_width=base) for base in (None, 4)
    )
    key = "blocks/mlp/in/kernel"
    np.testing.assert_allclose(scaled[key], plain[key], rtol=1e-6)


@pytest.mark.parametrize("options", [{"mup_base_width": 0}, {"mup_depth_power": 2.0}])
def test_impossible_bases_are_refused(options):
    with pytest.raises(UserError, match="mup_"):
        resolve("training.optimizers", "adamw", **options)


@pytest.mark.slow
def test_depth_does_not_make_the_stream_grow_when_branches_are_scaled():
    """Untrained blocks with open gates add independent branches: p = 1/2 keeps the stream's size."""
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
    cond = mup.Cond(label=jnp.arange(4))

    def size(depth, base):
        model = make(32, depth, unroll=True)
        optimizer = {"mup_base_depth": base, "mup_depth_power": 0.5}

        def last(key):
            params, axes = models.init(model, key, SHAPE), models.logical_axes(model, SHAPE)
            params = scale_init(of_section(optimizer), axes, params)
            params = mup.with_open_gates(params, jax.random.key(2), 1.0)
            seen = mup.activations(model, params, x, jnp.full(4, 0.5), cond)
            return jnp.sqrt(jnp.square(seen[f"block {depth - 1}"]).mean())

        return float(jax.jit(last)(jax.random.key(0)))

    shallow, deep, scaled = size(2, None), size(8, None), size(8, 2)
    assert deep > 1.5 * shallow
    assert scaled == pytest.approx(shallow, rel=0.2)


def check(name, base, widths=(32, 256), seeds=2, make=make, shape=SHAPE):
    draw = np.random.default_rng(0)
    batch = {
        "x": draw.standard_normal((8, *shape)).astype(np.float32),
        "label": np.arange(8).astype(np.int32),
        "id": np.arange(8, dtype=np.int32),
    }
    loss = resolve(
        "objectives",
        "denoise",
        times=resolve("diffusion.times", "uniform"),
        weight=resolve("diffusion.weights", "none"),
    )
    process = Process(
        resolve("diffusion.paths", "linear"), resolve("diffusion.predictions", "velocity")
    )
    return mup.coordinate_check(
        functools.partial(make, depth=1),
        loss=loss,
        process=process,
        batch=batch,
        optimizer={"name": name, "lr": 2e-3, "mup_base_width": base},
        widths=widths,
        seeds=seeds,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_coordinates_grow_with_the_width_in_the_standard_parametrisation_only(name, tmp_path):
    standard, scaled = check(name, None), check(name, 32)
    assert standard.steepest[1] >= 0.5
    assert scaled.steepest[1] <= 0.15
    np.testing.assert_allclose(standard.change[0], scaled.change[0], rtol=1e-4)  # at the base width
    mup.plot_coordinates({"standard": standard, "muP": scaled}, str(tmp_path / "check.png"))
    assert (tmp_path / "check.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.exhaustive
def test_coordinates_of_a_unet_grow_in_the_standard_parametrisation_only():
    options = {"widths": (8, 32), "seeds": 1, "make": make_unet, "shape": (1, 4, 4, 1)}
    standard, scaled = check("adamw", None, **options), check("adamw", 8, **options)
    assert standard.steepest[1] >= 0.8
    assert scaled.steepest[1] <= 0.35  # as narrow as this
    np.testing.assert_allclose(standard.change[0], scaled.change[0], rtol=1e-4)  # at the base width


def test_slopes_are_exponents():
    widths = (32, 64, 128)
    change = np.array([[[0.1 * w**0.5, 3.0]] * 2 for w in widths])
    found = mup.Coordinates(widths, ("a", "b"), change, np.zeros((3, 2)))
    assert found.slopes == {"a": pytest.approx(0.5), "b": pytest.approx(0, abs=1e-9)}
    assert found.steepest[0] == "a"
    np.testing.assert_allclose(found.seed_slopes("a"), [0.5, 0.5])


def test_regrets_are_of_the_rates_that_are_best_in_the_mean_and_rows_read_back():
    loss = np.array([[[1.0, 1.0], [2.0, 2.0]], [[3.0, 2.2], [2.0, 2.0]]])
    found = sweeps.RateSweep((32, 128), (0.1, 0.2), (0, 1), loss)
    assert (found.best(32), found.best(128)) == (0.1, 0.2)
    np.testing.assert_allclose(found.regrets(32, 128), [0.5, 0.1])
    assert found.regret(32, 128) == pytest.approx(0.3)
    rows = found.rows(arm="muP")
    assert rows[-1] == {"arm": "muP", "width": 128, "lr": 0.2, "seed": 1, "loss": 2.0}
    again = sweeps.from_rows(rows[::-1])
    assert (again.widths, again.rates, again.seeds) == ((32, 128), (0.1, 0.2), (0, 1))
    np.testing.assert_array_equal(again.loss, loss)
    for broken in (rows[1:], [*rows, rows[0]]):
        with pytest.raises(UserError, match="one for each of 2 widths"):
            sweeps.from_rows(broken)


def test_a_config_asks_for_it():
    """The optimizer's section alone changes initial parameters and rates."""
    section = {"name": "adamw", "lr": 1e-3}
    config = {
        "steps": 1,
        "batch_size": 8,
        "data": {"name": "noise", "shape": SHAPE},
        "codec": {"name": "latent"},
        "model": {"name": "dit", "depth": 1, "width": 64, "heads": 4},
        "path": {"name": "linear"},
        "prediction": {"name": "velocity"},
    }
    kernels = []
    for base in (None, 16):
        experiment = build({**config, "optimizer": {**section, "mup_base_width": base}})
        params = experiment.init(jax.random.key(0))
        kernels.append(np.asarray(params["time"]["out"]["kernel"]))
    np.testing.assert_allclose(kernels[1], kernels[0] / 2, rtol=1e-6)


def rates(name, base, widths=(32, 128), steps=300):
    digits = resolve("data.sources", "digits")
    parts = [
        {"x": part.x.astype(np.float32) / 127.5 - 1, "label": part.label}
        for part in (digits.train, digits.held_out)
    ]
    loss = resolve(
        "objectives",
        "denoise",
        times=resolve("diffusion.times", "uniform"),
        weight=resolve("diffusion.weights", "none"),
        strata=32,
    )
    process = Process(
        resolve("diffusion.paths", "linear", time_scale=1000.0),
        resolve("diffusion.predictions", "velocity"),
    )
    return sweeps.rate_sweep(
        make,
        loss=loss,
        process=process,
        train=parts[0],
        test=parts[1],
        optimizer={"name": name, "betas": (0.9, 0.99), "mup_base_width": base},
        widths=widths,
        rates=[2.0 ** (-k / 2) for k in range(16, 10, -1)],
        steps=steps,
        seeds=(0,),
    )


@pytest.mark.slow
@pytest.mark.exhaustive  # four minutes; that activations keep their size is tested above
@pytest.mark.usefixtures("optimised")
def test_the_best_rate_of_a_narrow_model_serves_a_wide_one_with_mup_only():
    scaled, standard = rates("adamw", 32), rates("adamw", None)
    assert scaled.regret(32, 128) <= 0.02
    assert standard.regret(32, 128) > 0.1
