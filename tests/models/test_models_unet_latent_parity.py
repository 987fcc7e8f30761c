"""Stable Diffusion's U-Nets against diffusers' at tiny sizes: values, gradients, names, round trips."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, quick
from weights_files import write_safetensors

from dit import config, models, rng
from dit.diffusion.process import Process, denoiser
from dit.interop import files
from dit.models import unet_sizes
from dit.sampling.sample import sample
from dit.types import Cond, UserError

pytestmark = pytest.mark.torch
BATCH, SIDES, LENGTH = 3, (8, 12), 7  # an odd text, pictures that are not square
READS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
PLAIN = ("DownBlock2D", "UpBlock2D")
KINDS = {  # diffusers' arguments, and whether the text has a mask
    "sd1": ({"attention_head_dim": 4}, True),
    "sd2": (
        {"attention_head_dim": [1, 2, 2], "use_linear_projection": True, "layers_per_block": 1},
        False,
    ),
    "inpaint": ({"attention_head_dim": 2, "in_channels": 7, "layers_per_block": 1}, False),
    "sdxl": (
        {
            "layers_per_block": 1,
            "attention_head_dim": [1, 2, 2],
            "use_linear_projection": True,
            "down_block_types": (PLAIN[0], READS[0], READS[0]),
            "up_block_types": (READS[1], READS[1], PLAIN[1]),
            "transformer_layers_per_block": [1, 2, 3],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 5 + 6 * 256,
        },
        True,
    ),
}
COMMON = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": (READS[0], READS[0], PLAIN[0]),
    "up_block_types": (PLAIN[1], READS[1], READS[1]),
    "cross_attention_dim": 6,
    "norm_num_groups": 4,
    "sample_size": SIDES,
    "in_channels": 4,
    "out_channels": 4,
}
INPUTS = ("x", "context", "pooled", "concat")
SHAPE = (1, *SIDES, 4)


@functools.cache
def network(kind):
    """Diffusers' network, how it is called with our arrays, ours, the format and the weights."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    other = diffusers.UNet2DConditionModel(**COMMON | KINDS[kind][0]).eval()
    for key, p in other.named_parameters():  # all of them: zeros would hide what follows
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in key and key.endswith("weight") else 0)

    def call(x, t, context, context_mask=None, pooled=None, concat=None):
        x = x if concat is None else torch.cat([x, concat], -1)
        more, size = {}, [8.0 * side for side in SIDES]
        if pooled is not None:
            sizes = torch.tensor([[*size, 0.0, 0.0, *size]]).repeat(len(x), 1)
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        out = other(
            x[:, 0].permute(0, 3, 1, 2),
            t,
            context,
            encoder_attention_mask=context_mask,
            **more,
        )
        return out.sample.permute(0, 2, 3, 1)[:, None]

    layout = config.resolve("interop", "diffusers_unet")
    told = layout.sections({}, json.loads(other.to_json_string()))
    model = config.resolve("models", in_channels=4, **told["model"])
    state = {k: v.detach().numpy() for k, v in other.state_dict().items()}
    return other, call, model, layout, state


def given(kind):
    """Our arrays."""
    draw, model = np.random.default_rng(0), network(kind)[2]
    arrays = {
        "x": draw.standard_normal((BATCH, *SHAPE)),
        "t": np.array([0.0, 17.0, 951.0]),
        "context": draw.standard_normal((BATCH, LENGTH, 6)),
    }
    if model.pooled_dim:
        arrays["pooled"] = draw.standard_normal((BATCH, 5))
    if model.concat_channels:
        arrays["concat"] = draw.standard_normal((BATCH, *SHAPE[:3], 3))
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
    if KINDS[kind][1]:
        arrays["context_mask"] = np.arange(LENGTH)[None] < np.array([[7], [1], [4]])
    return arrays


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.exhaustive] * (k == "sd2")) for k in KINDS]
)
def test_outputs_and_gradients_are_those_of_diffusers(kind):
    torch = pytest.importorskip("torch")
    other, call, model, layout, state = network(kind)
    arrays = given(kind)
    theirs = {k: torch.tensor(v, requires_grad=k in INPUTS) for k, v in arrays.items()}
    other.zero_grad()
    out = call(**theirs)
    out.square().mean().backward()

    def loss(params, some, t, mask):
        told = {k: v for k, v in some.items() if k != "x"}
        cond = Cond(context_mask=mask, **told)
        out = models.apply_fn(model)(params, some["x"], t, cond)
        return jnp.square(out).mean(), out

    params = layout.to_params(state, model, SHAPE)
    t, mask = arrays.pop("t"), arrays.pop("context_mask", None)
    (_, found), (grads, slopes) = quick(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        params, arrays, t, mask
    )
    want = out.detach().numpy()
    np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())
    for k, slope in slopes.items():
        grad = theirs[k].grad.numpy()
        np.testing.assert_allclose(slope, grad, atol=1e-4 * np.abs(grad).max(), err_msg=k)
    named = dict(other.named_parameters())
    back = layout.to_state(grads, model, SHAPE)
    assert named.keys() == back.keys()
    for key, p in named.items():
        grad = p.grad.numpy()
        atol = 1e-4 * np.abs(grad).max()
        np.testing.assert_allclose(back[key], grad, atol=atol, err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_out_as_they_went_in_and_have_the_authors_names(kind, tmp_path):
    torch = pytest.importorskip("torch")
    other, _, model, layout, state = network(kind)
    params = layout.to_params(state, model, SHAPE)
    again = layout.to_state(params, model, SHAPE)
    assert set(again) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    said = json.loads(other.to_json_string())
    for key, value in layout.settings(model, SHAPE).items():
        if key not in ("attention_head_dim", "transformer_layers_per_block"):
            assert said[key] == value, key
    assert layout.sections({}, layout.settings(model, SHAPE)) == layout.sections({}, said)
    original = config.resolve("interop", "unet_original")
    written = original.to_state(params, model, SHAPE)
    within = {f"model.diffusion_model.{k}": v for k, v in written.items()}
    beside = {"model_ema.decay": np.ones(1), "first_stage_model.quant_conv.bias": np.ones(8)}
    for whole in (within | beside, {f"state_dict.{k}": v for k, v in (within | beside).items()}):
        read = original.to_params(whole, model, SHAPE)
        jax.tree.map(np.testing.assert_array_equal, read, params)
    write_safetensors(
        tmp_path / "pruned.safetensors", within | {"cond_stage_model.x": np.ones(2, np.float32)}
    )
    read = original.to_params(files.read(tmp_path / "pruned.safetensors"), model, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    utils = importlib.import_module("diffusers.loaders.single_file_utils")
    found = utils.convert_ldm_unet_checkpoint(
        {k: torch.tensor(v) for k, v in within.items()}, other.config
    )
    assert set(found) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(found[key].numpy(), value, err_msg=key)


@pytest.mark.parametrize("whole", [True, False])
def test_ten_steps_are_those_of_diffusers(whole):
    """To data, or as the published scheduler ends: at the first timestep's noise."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    _, call, model, layout, state = network("sd1")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDIMScheduler(
        **betas, clip_sample=False, set_alpha_to_one=whole, steps_offset=1
    )
    scheduler.set_timesteps(10)
    arrays = given("sd1")
    torches = {k: torch.tensor(arrays[k]) for k in ("context", "context_mask")}
    x = torch.tensor(arrays["x"])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(call(x, t.expand(BATCH), **torches), t, x).prev_sample

    told = layout.sections({}, layout.settings(model, SHAPE))
    path = config.resolve("diffusion.paths", **told["path"])
    process = Process(path, config.resolve("diffusion.predictions", **told["prediction"]))
    grid = config.resolve("sampling.grids", "ddpm", spacing="leading", offset=1)(path, 10)
    grid = grid if whole else grid.at[-1].set(path.t_min)
    np.testing.assert_allclose(path.c_noise(grid[:-1]), scheduler.timesteps.numpy(), atol=1e-3)

    @quick
    def draw(params, x, cond):
        solver = config.resolve("sampling.solvers", "ddim")
        denoise = denoiser(process, models.apply_fn(model), params, cond)
        return sample(rng.root(0), denoise, path, solver, grid, x)

    cond = Cond(**{k: jnp.asarray(arrays[k]) for k in torches})
    found = draw(layout.to_params(state, model, SHAPE), jnp.asarray(arrays["x"]), cond)
    np.testing.assert_allclose(found, x.numpy(), atol=1e-3 * np.abs(x.numpy()).max())


@pytest.mark.parametrize("size", [x for x in unet_sizes.SIZES if x.startswith("SD")])
def test_published_sizes_have_the_parameters_of_diffusers(size):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    own = config.resolve("models", "unet", size=size, in_channels=4)
    said = config.resolve("interop", "diffusers_unet").settings(own, (1, 64, 64, 4))
    with torch.device("meta"):
        other = diffusers.UNet2DConditionModel.from_config(said)
    count = models.count_params(abstract(own, (1, 16, 16, 4)))
    assert count == sum(p.numel() for p in other.parameters())


def test_what_a_format_cannot_hold_is_refused():
    _, _, model, layout, state = network("sd1")
    wrong = [{"null": "learned"}, {"num_classes": 3}, {"temporal": True}, {"transformer": None}]
    said = layout.sections({}, layout.settings(model, SHAPE))["model"] | {"in_channels": 4}
    for change in (*wrong, {"scale_shift": True}, {"resblock_updown": True}):
        given = said | change | ({"linear_projection": True} if "transformer" in change else {})
        with pytest.raises(UserError, match="build it with a size, such as 'SD-1"):
            layout.to_params(state, config.resolve("models", **given), SHAPE)
    missing = {k: v for k, v in state.items() if "attn2.to_q" not in k}
    with pytest.raises(UserError, match=r"missing \['down_blocks.0.attentions.0"):
        layout.to_params(missing, model, SHAPE)
    for key, value, message in (
        ("num_class_embeds", 4, "expected None"),
        ("attention_head_dim", [1, 3, 4], "heads of equal size"),
        ("up_block_types", [PLAIN[1]] * 3, "the same on the way up"),
        ("block_out_channels", [8, 12, 16], "a multiple of the first"),
        ("addition_embed_type", "image", "expected 'text_time'"),
    ):
        with pytest.raises(UserError, match=message):
            layout.sections({}, layout.settings(model, SHAPE) | {key: value})
