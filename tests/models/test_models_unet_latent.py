"""The U-Net with transformers: what it is told, its frames, its costs, its meshes and its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, params_of, quick
from weights_files import write_json, write_safetensors

from dit import config, convert, draw, models
from dit.models import unet_sizes
from dit.parallel.mesh import batch_sharding, make_mesh
from dit.parallel.rules import in_force, shardings
from dit.scaling.costs import costs
from dit.scaling.jaxpr_flops import count_flops
from dit.types import Cond, UserError

SHAPE = (2, 4, 8, 2)
PUBLISHED = {  # parameters, as counted of diffusers' networks by test_models_unet_latent_parity.py
    "SD-1.5": 859_520_964,
    "SD-2.1": 865_910_724,
    "SDXL": 2_567_463_684,
}


def tiny(**kwargs):
    defaults = {
        **{"width": 8, "multipliers": (1, 2), "depth": 1, "attention_levels": (1,), "heads": 2},
        **{"norm_groups": 4, "in_channels": 2, "scale_shift": False, "resblock_updown": False},
        **{"transformer": (1, 2), "context_dim": 6, "null": "zero"},
    }
    return config.resolve("models", "unet", **(defaults | kwargs))


SIZED = tiny(pooled_dim=5, pixel_size=8)


def inputs(batch=8, length=3):
    """Random ``(x, t, cond)``, with texts of unequal lengths."""
    draw = np.random.default_rng(1)
    number = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)  # noqa: E731
    real = jnp.arange(length)[None] < 1 + jnp.arange(batch)[:, None] % length
    cond = Cond(context=number(batch, length, 6), context_mask=real, pooled=number(batch, 5))
    return number(batch, *SHAPE), jnp.asarray(draw.random(batch), jnp.float32), cond


def loss_and_gradient(model):
    def loss(params, x, t, cond, told):
        context, pooled = told
        cond = cond.replace(context=context, pooled=pooled)
        out = models.apply_fn(model)(params, x, t, cond)
        return jnp.square(out - x).mean(), out

    return jax.value_and_grad(loss, (0, 4), has_aux=True)


@pytest.fixture(scope="module")
def compiled():
    """Loss, output and gradients, of parameters and of what it is told; no parameter is zero."""
    params, run = params_of(SIZED, SHAPE, noise=0.2), quick(loss_and_gradient(SIZED))
    return params, lambda x, t, cond: run(
        params, x, t, cond.replace(context=None, pooled=None), (cond.context, cond.pooled)
    )


def far(a, b):
    """The largest difference in the sample that differs least."""
    return np.abs(a - b).max((1, 2, 3, 4)).min()


@pytest.mark.slow
def test_it_is_told_what_it_is_given_but_not_padding_and_zeros_where_that_is_dropped(compiled):
    run = compiled[1]
    x, t, cond = inputs()
    cond = cond.replace(drop=jnp.zeros(8, bool))
    (_, out), (grads, _) = run(x, t, cond)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert np.any(grad), jax.tree_util.keystr(path)
    for change in (
        cond.replace(context=cond.context.at[:, 0].add(1.0)),
        cond.replace(pooled=cond.pooled + 1),
    ):
        assert far(run(x, t, change)[0][1], out) > 1e-3
    padding = jnp.where(cond.context_mask[..., None], 0.0, 9.0)
    same = run(x, t, cond.replace(context=cond.context + padding))[0][1]
    np.testing.assert_allclose(same, out, atol=1e-5)
    null = run(x, t, cond.null(8))[0][1]
    zero = cond.replace(context=0 * cond.context, pooled=0 * cond.pooled)
    np.testing.assert_allclose(null, run(x, t, zero)[0][1], atol=1e-5)
    assert far(null, out) > 1e-3
    order = jnp.array([1, 0])  # each frame is a picture with the same text
    turned = run(x[:, order], t, cond)[0][1]
    np.testing.assert_allclose(turned, out[:, order], atol=1e-5)


MESHES = [
    pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.exhaustive),
    {"fsdp": 2, "context": 2, "tensor": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.filterwarnings("ignore:.*does not divide")
def test_a_mesh_gives_the_numbers_of_one_device(compiled, sizes):
    params, run = compiled
    x, t, cond = inputs()
    (want, _), want_grads = run(x, t, cond)
    mesh = make_mesh(sizes, jax.devices()[:8])
    where, rows = shardings(params, models.logical_axes(SIZED, SHAPE), mesh), batch_sharding(mesh)

    def step(*given):
        with in_force(mesh):
            return loss_and_gradient(SIZED)(*given)

    told = cond.context, cond.pooled
    data = x, t, cond.replace(context=None, pooled=None), told
    data = jax.device_put(data, rows)
    placed = jax.device_put(jax.device_get(params), where)  # to split arrays of a device compiles
    options = {"in_shardings": (where, rows, rows, rows, rows)}
    (got, _), grads = jax.jit(step, **options)(placed, *data)
    assert abs(float(got) - float(want)) <= 1e-5 * float(want)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        a, b = jax.device_get((a, b))
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + 1e-7


@pytest.mark.slow
def test_a_loop_over_the_blocks_is_the_same_as_each_by_itself(compiled):
    params, run = compiled
    x, t, cond = inputs()
    looped = SIZED.plain().clone(remat="full")
    apart = models.unstack(looped, params)
    assert set(apart["middle_0"]["transformer"]["blocks"]) == {"0", "1"}
    for given in (params, apart):
        found = quick(models.apply_fn(looped))(given, x, t, cond)
        np.testing.assert_allclose(found, run(x, t, cond)[0][1], atol=1e-5)


@pytest.mark.first
@pytest.mark.parametrize(
    ("level", "options"),
    [
        ("frame", {"attention_levels": (0, 1), "transformer": 2, "linear_projection": False}),
        ("sample", {"pooled_dim": 5, "pixel_size": 8, "temporal": True, "concat_channels": 3}),
        ("sample", {"context_dim": None, "pooled_dim": 5}),
    ],
    ids=str,
)
def test_macs_equal_those_of_the_program(level, options):
    model = tiny(attention="xla", **options)
    x, t, cond = model.example(SHAPE)
    t = jnp.zeros((1, SHAPE[0])) if level == "frame" else t
    if model.context_dim:
        cond = cond.replace(context=jnp.zeros((1, 3, 6)))

    def total(told):
        params, context, pooled = told
        return models.apply_fn(model)(
            params, x, t, cond.replace(context=context, pooled=pooled)
        ).sum()

    told = abstract(model, SHAPE), cond.context, cond.pooled
    found = costs(model, SHAPE, 3 if model.context_dim else 0, level)
    assert found.forward == count_flops(total, told)
    assert found.training == count_flops(jax.grad(total), told)
    assert found.parameters == models.count_params(told[0])


@pytest.mark.first
@pytest.mark.parametrize("size", [name for name in unet_sizes.SIZES if name.startswith("SD")])
def test_published_parameters(size):
    model = config.resolve("models", "unet", size=size, in_channels=4)
    assert models.count_params(abstract(model, (1, 8, 8, 4))) == PUBLISHED[size]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer": (1, 2, 3)}, "expected one a level, of 2"),
        ({"transformer": None, "linear_projection": False}, "linear_projection=False and no"),
        ({"pixel_size": 8}, "beside a pooled vector, with null='zero'"),
        ({"pixel_size": 8, "pooled_dim": 5, "null": "learned"}, "with null='zero'"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)


@pytest.mark.slow
def test_a_pipeline_whose_scheduler_is_pndm_becomes_a_run_that_draws_by_it(tmp_path):
    layout = config.resolve("interop", "diffusers_unet")
    network = tiny(depth=2, in_channels=4)
    state = layout.to_state(params_of(network, (1, 4, 8, 4)), network, (1, 4, 8, 4))
    (tmp_path / "pipe/unet").mkdir(parents=True)
    (tmp_path / "pipe/scheduler").mkdir()
    write_json(tmp_path / "pipe/unet/config.json", layout.settings(network, (1, 8, 8, 4)))
    write_safetensors(tmp_path / f"pipe/unet/{layout.stem}.safetensors", state)
    given = ["--from=diffusers_unet", f"--weights={tmp_path}/pipe", "--config.codec.name=latent"]
    for i, (settings, solver) in enumerate(
        (
            ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "pndm"),
            ({"_class_name": "PNDMScheduler"}, "pndm:runge_kutta=true"),
            ({"_class_name": "DDIMScheduler"}, "ddim"),
        )
    ):
        write_json(tmp_path / "pipe/scheduler/scheduler_config.json", settings)
        place = f"--workdir={tmp_path}/run{i}"
        convert.main([*given, place])
        kept = draw.load_experiment(f"{tmp_path}/run{i}").config.samples
        assert kept.solver == solver
        assert kept.grid == "ddpm:spacing=leading,offset=1"
