"""MMDiT against diffusers' networks at tiny sizes: values, gradients, names and round trips."""

import importlib
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmdit_families import BATCH, FAMILIES, SHAPE, family, given
from models_cases import abstract, quick

from dit import config, models, rng
from dit.diffusion.process import Process, denoiser
from dit.models import mmdit_sizes
from dit.sampling.sample import sample
from dit.types import Cond, UserError

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_those_of_diffusers(name):
    torch = pytest.importorskip("torch")
    other, call, model, layout, state = family(name)
    arrays = given(name)
    theirs = {k: torch.tensor(v) for k, v in arrays.items()}
    inputs = [k for k in arrays if k in ("x", "context", "pooled")]
    for k in inputs:
        theirs[k].requires_grad_()
    x = theirs.pop("x")
    out = call(x[:, 0].permute(0, 3, 1, 2), **theirs)
    out.square().mean().backward()

    def loss(params, some, rest):
        cond = {k: v for k, v in (some | rest).items() if k not in ("x", "t")}
        out = models.apply_fn(model)(params, some["x"], rest["t"], Cond(**cond))
        return jnp.square(out).mean(), jnp.moveaxis(out[:, 0], -1, 1)

    params = layout.to_params(state, model, SHAPE)
    some = {k: arrays.pop(k) for k in inputs}
    got = quick(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, some, arrays)
    (_, found), (grads, slopes) = got
    want = out.detach().numpy()
    np.testing.assert_allclose(found, want, atol=2e-5 * max(1, np.abs(want).max()))
    theirs["x"] = x
    for k, slope in slopes.items():
        grad = theirs[k].grad.numpy()
        np.testing.assert_allclose(slope, grad, atol=1e-4 * np.abs(grad).max(), err_msg=k)
    named = dict(other.named_parameters())
    back = layout.to_state(grads, model, SHAPE)
    assert named.keys() <= back.keys()
    for key, p in named.items():
        grad = np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        atol = 1e-4 * np.abs(grad).max() + 1e-7  # a bias of keys changes nothing
        np.testing.assert_allclose(back[key], grad, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_come_out_as_they_went_in(name):
    _, _, model, layout, state = family(name)
    again = layout.to_state(layout.to_params(state, model, SHAPE), model, SHAPE)
    assert set(again) == set(state)
    for key, value in state.items():
        if key == "pos_embed.pos_embed":  # is computed anew
            np.testing.assert_allclose(again[key], value, atol=1e-6)
        else:
            np.testing.assert_array_equal(again[key], value, err_msg=key)


CONVERTERS = {  # of diffusers, from the authors' names to its own
    "sd3": ("sd3_original", "convert_sd3_transformer_checkpoint_to_diffusers"),
    "sd3.5": ("sd3_original", "convert_sd3_transformer_checkpoint_to_diffusers"),
    "flux.1": ("flux_original", "convert_flux_transformer_checkpoint_to_diffusers"),
    "flux.2": ("flux_original", "convert_flux2_transformer_checkpoint_to_diffusers"),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_the_authors_names_are_those_that_diffusers_converts(name):
    torch = pytest.importorskip("torch")
    _, _, model, layout, state = family(name)
    format, converter = CONVERTERS[name]
    utils = importlib.import_module("diffusers.loaders.single_file_utils")
    convert = getattr(utils, converter)
    if name == "flux.1":  # is for one width only
        width = (model.width if c == 3072 else c for c in convert.__code__.co_consts)
        code = convert.__code__.replace(co_consts=tuple(width))
        convert = types.FunctionType(code, vars(utils))
    original = config.resolve("interop", format)
    params = layout.to_params(state, model, SHAPE)
    written = original.to_state(params, model, SHAPE)
    found = convert({k: torch.tensor(v) for k, v in written.items()})
    assert set(found) == set(state)
    for key, value in state.items():
        atol = 1e-6 if key == "pos_embed.pos_embed" else 0
        np.testing.assert_allclose(found[key].numpy(), value, rtol=0, atol=atol, err_msg=key)
    if "sd3" in name:
        written = {f"model.diffusion_model.{k}": v for k, v in written.items()}
        written["first_stage_model.decoder.conv_in.bias"] = np.zeros(3, np.float32)
    jax.tree.map(np.testing.assert_array_equal, original.to_params(written, model, SHAPE), params)


def test_what_a_format_cannot_hold_is_refused():
    for name, change, message in (
        ("sd3", {"null": "learned"}, "build it with null='zero', or with a size"),
        (
            "flux.1",
            {"num_classes": 3},
            "takes context, guidance, label, pooled: build it with these",
        ),
        ("flux.2", {"mlp": "gelu"}, "build it with mlp='swiglu'"),
        ("qwen-image", {"patch": (2, 2, 2)}, r"build it with patch=\(1, 2, 2\)"),
    ):
        _, _, model, layout, state = family(name)
        with pytest.raises(UserError, match=message):
            layout.to_params(state, model.clone(**change), SHAPE)
    _, _, model, layout, state = family("sd3")
    wrong = {k: v for k, v in state.items() if "1.attn.to_q" not in k}
    with pytest.raises(UserError, match=r"missing \['transformer_blocks.1.attn.to_q"):
        layout.to_params(wrong, model, SHAPE)
    for table in (state["pos_embed.pos_embed"][:, :-1], state["pos_embed.pos_embed"] + 0.1):
        with pytest.raises(UserError, match="is not the table"):
            layout.to_params(state | {"pos_embed.pos_embed": table}, model, SHAPE)
    half = state["pos_embed.pos_embed"].astype(np.float16)
    layout.to_params(state | {"pos_embed.pos_embed": half}, model, SHAPE)


def shift_of(pipeline, *args):
    """What a pipeline of diffusers adds to log-SNR / 2 for so many tokens."""
    module = importlib.import_module(f"diffusers.pipelines.{pipeline}")
    name = "compute_empirical_mu" if "flux2" in pipeline else "calculate_shift"
    return getattr(module, name)(*args)


SCHEDULES = {  # shift of the scheduler or of its steps, what its grid is here, and diffusers' settings
    "sd3.5": (None, {"shift": 3.0, "base": "linspace", "last": 3 / 1002}, {"shift": 3.0}),
    "flux.1": (("flux.pipeline_flux", 15), {}, {}),
    "flux.2": (("flux2.pipeline_flux2", 60, 10), {}, {}),
    "qwen-image": (
        ("qwenimage.pipeline_qwenimage", 15, 256, 8192, 0.5, 0.9),
        {"terminal": 0.02},
        {"shift_terminal": 0.02},
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_ten_steps_are_those_of_diffusers(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    _, call, model, layout, state = family(name)
    which, settings, theirs = SCHEDULES[name]
    mu = None if which is None else shift_of(*which)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        **theirs, use_dynamic_shifting=mu is not None
    )
    sigmas = None if mu is None else np.linspace(1, 0.1, 10)
    scheduler.set_timesteps(10, sigmas=sigmas, mu=mu)
    arrays = given(name)
    told = {k: torch.tensor(v) for k, v in arrays.items() if k not in ("x", "t")}
    x = torch.tensor(arrays["x"][:, 0]).permute(0, 3, 1, 2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(call(x, t.expand(BATCH) / 1000, **told), t, x).prev_sample

    settings = settings if mu is None else {"shift": math.exp(mu), **settings}
    path = config.resolve("diffusion.paths", "linear", time_scale=1000.0)
    process = Process(path, config.resolve("diffusion.predictions", "velocity"))
    grid = config.resolve("sampling.grids", "shifted", **settings)(path, 10)
    np.testing.assert_allclose(grid, scheduler.sigmas.numpy(), atol=1e-6)
    apply = models.apply_fn(model.clone(time_scale=1.0))
    params = layout.to_params(state, model, SHAPE)

    @quick
    def draw(params, x, cond):
        denoise = denoiser(process, apply, params, cond)
        solver = config.resolve("sampling.solvers", "euler")
        return sample(rng.root(0), denoise, path, solver, grid, x)

    cond = Cond(**{k: jnp.asarray(v) for k, v in arrays.items() if k not in ("x", "t")})
    found = draw(params, jnp.asarray(arrays["x"]), cond)
    want = x.permute(0, 2, 3, 1).numpy()[:, None]
    np.testing.assert_allclose(found, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("size", mmdit_sizes.SIZES)
def test_published_sizes_have_the_parameters_of_diffusers(size):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    own = config.resolve("models", "mmdit", size=size, in_channels=16)
    common = {
        "num_layers": own.depth,
        "attention_head_dim": own.width // own.heads,
        "num_attention_heads": own.heads,
        "joint_attention_dim": own.context_dim,
    }
    network, options = "QwenImage", {}
    if "SD3" in size:
        network, options = (
            "SD3",
            {
                "pooled_projection_dim": own.pooled_dim,
                "caption_projection_dim": own.width,
                "dual_attention_layers": tuple(range(own.dual_depth)),
                "qk_norm": "rms_norm" if own.qk_norm else None,
            },
        )
    elif "FLUX" in size:
        network = "Flux2" if "FLUX.2" in size else "Flux"
        options = {"num_single_layers": own.single_depth, "guidance_embeds": own.guidance_input}
    with torch.device("meta"):
        other = getattr(diffusers, f"{network}Transformer2DModel")(**common, **options)
    if network == "Flux2":  # whose latents are 2x2 cells of 32 channels
        own = own.clone(in_channels=128, out_channels=128)
    shape = (1, 16, 16, own.in_channels)
    count = models.count_params(abstract(own, shape))
    assert count == sum(p.numel() for p in other.parameters())
