"""LTX-Video against diffusers' network at tiny sizes: values, gradients, names and round trips."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, quick

from dit import config, models, rng
from dit.diffusion.process import Process, denoiser
from dit.interop import diffusers_ltx
from dit.models import wan_sizes
from dit.sampling.sample import sample
from dit.types import Cond, UserError

pytestmark = pytest.mark.torch
BATCH, SHAPE, LENGTH = 2, (3, 2, 5, 4), 7  # of a clip, f h w c, and tokens of the text
SIZES = [size for size in wan_sizes.SIZES if size.startswith("LTX")]
WIDTHS = {"span": 40, "span_causal": 36}  # of 40 channels two pairs do not turn
FPS = 24.0


@functools.cache
def network(rope):
    """Diffusers' network, how it is called with our arrays, ours, the format and the weights."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    width, heads = WIDTHS[rope], 2
    torch.manual_seed(0)
    other = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        cross_attention_dim=width,
        num_layers=2,
        caption_channels=7,
    )
    for key, p in other.named_parameters():  # all of them: zeros would hide what follows
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in key else 0)

    def call(x, t, context, context_mask):
        f, h, w, _ = x.shape[1:]
        asked = {"rope_interpolation_scale": (8 / FPS, 32, 32)}
        if rope == "span_causal":
            pipeline = diffusers.LTXConditionPipeline
            where = pipeline._scale_video_ids(pipeline._prepare_video_ids(BATCH, f, h, w)).float()
            where[:, 0] *= 1 / FPS
            asked = {"video_coords": where}
        t = 1000 * (t.flatten(1) if t.ndim > 1 else t)
        sizes = {"num_frames": f, "height": h, "width": w, **asked}
        return other(x.flatten(1, 3), context, t, context_mask, **sizes).sample.reshape(x.shape)

    size = "LTX-Video-0.9-2B" if rope == "span" else "LTX-Video-0.9.7-13B"
    tiny = {"depth": 2, "width": width, "heads": heads, "context_dim": 7, "in_channels": 4}
    model = config.resolve("models", "wan", size=size, fps=FPS, time_scale=1000.0, **tiny)
    state = {k: v.detach().numpy() for k, v in other.state_dict().items()}
    return other, call, model, config.resolve("interop", "diffusers_ltx"), state


def given(rope):
    """Our arrays; with a first frame, every token has its time."""
    draw = np.random.default_rng(0)
    t = np.array([0.013, 0.125])  # of 1000 t the sinusoids differ by the rounding of it
    if rope == "span_causal":
        t = draw.choice([0.0, *t], (BATCH, *SHAPE[:3]))
    arrays = {
        "x": draw.standard_normal((BATCH, *SHAPE)),
        "t": t,
        "context": draw.standard_normal((BATCH, LENGTH, 7)),
    }
    mask = np.arange(LENGTH)[None] < np.array([[3], [LENGTH]])
    return {k: v.astype(np.float32) for k, v in arrays.items()} | {"context_mask": mask}


@pytest.mark.parametrize("rope", WIDTHS)
def test_outputs_and_gradients_are_those_of_diffusers(rope):
    torch = pytest.importorskip("torch")
    other, call, model, layout, state = network(rope)
    arrays = given(rope)
    inputs = ("x", "context")
    theirs = {k: torch.tensor(v, requires_grad=k in inputs) for k, v in arrays.items()}
    other.zero_grad()
    out = call(**theirs)
    out.square().mean().backward()

    def loss(params, some, t, mask):
        cond = Cond(context=some["context"], context_mask=mask)
        out = models.apply_fn(model)(params, some["x"], t, cond)
        return jnp.square(out).mean(), out

    params = layout.to_params(state, model, SHAPE)
    some = {k: arrays[k] for k in inputs}
    run = quick(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, found), (grads, slopes) = run(params, some, arrays["t"], arrays["context_mask"])
    want = out.detach().numpy()
    np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())
    for k, slope in slopes.items():
        grad = theirs[k].grad.numpy()
        np.testing.assert_allclose(slope, grad, atol=1e-4 * np.abs(grad).max(), err_msg=k)
    assert not np.any(slopes["context"][0, 3:])
    named = dict(other.named_parameters())
    back = layout.to_state(grads, model, SHAPE)
    assert named.keys() == back.keys()
    for key, p in named.items():
        grad = p.grad.numpy()
        atol = 1e-4 * np.abs(grad).max() + 1e-8  # a bias of keys changes nothing
        np.testing.assert_allclose(back[key], grad, atol=atol, err_msg=key)


def test_weights_come_out_as_they_went_in_and_have_the_authors_names():
    torch = pytest.importorskip("torch")
    _, _, model, layout, state = network("span")
    params = layout.to_params(state, model, SHAPE)
    again = layout.to_state(params, model, SHAPE)
    assert set(again) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    original = config.resolve("interop", "ltx_original")
    written = original.to_state(params, model, SHAPE)
    whole = {f"model.diffusion_model.{k}": v for k, v in written.items()}
    whole["vae.encoder.conv_in.conv.bias"] = np.ones(3, np.float32)
    for file in (written, whole):
        read = original.to_params(file, model, SHAPE)
        jax.tree.map(np.testing.assert_array_equal, read, params)
    utils = importlib.import_module("diffusers.loaders.single_file_utils")
    named = {k: torch.tensor(v) for k, v in whole.items()}
    found = utils.convert_ltx_transformer_checkpoint_to_diffusers(named)
    assert set(found) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(found[key].numpy(), value, err_msg=key)


def test_what_a_format_cannot_hold_is_refused():
    _, _, model, layout, state = network("span")
    wan = config.resolve("interop", "diffusers_wan")
    for form, change, message in (
        (layout, {"null": "learned"}, "build it with null='zero', or with a size"),
        (layout, {"rope": "axes"}, "an LTX-Video, .* build it with rope='span'"),
        (layout, {"qk_norm_eps": 1e-6}, "build it with qk_norm_eps=1e-05"),
        (layout, {"pooled_dim": 3}, "takes context, pooled: build it with these conditions"),
        (wan, {}, "holds a Wan .* build it with norm='layer', cross_norm=True, rope='axes'"),
    ):
        with pytest.raises(UserError, match=message):
            form.to_params(state, model.clone(**change), SHAPE)


@pytest.mark.parametrize("rope", WIDTHS)
def test_ten_steps_are_those_of_diffusers(rope):
    """With the shift of the pipeline, and of the second network with a first frame that is known."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    _, call, model, layout, state = network(rope)
    pipeline = importlib.import_module("diffusers.pipelines.ltx.pipeline_ltx")
    ends = {"base_shift": 0.95, "max_shift": 2.05}
    dynamic = {"use_dynamic_shifting": True, "shift_terminal": 0.1, "max_image_seq_len": 4096}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=1024, **ends, **dynamic
    )
    tokens = math.prod(SHAPE[:3])
    mu = pipeline.calculate_shift(tokens, 1024, 4096, **ends)
    assert mu == pytest.approx(diffusers_ltx.mu(tokens))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10), mu=mu)
    arrays, known = given(rope), rope == "span_causal"
    x, context, mask = (torch.tensor(arrays[k]) for k in ("x", "context", "context_mask"))
    with torch.no_grad():
        for t in scheduler.timesteps:
            times = t.expand(BATCH) / 1000
            if known:
                times = times[:, None, None, None].repeat(1, *x.shape[1:4])
                times[:, 0] = 0
            last = scheduler.step(call(x, times, context, mask), t, x).prev_sample
            x = torch.cat([x[:, :1], last[:, 1:]], 1) if known else last

    path = config.resolve("diffusion.paths", "linear", time_scale=1000.0)
    process = Process(path, config.resolve("diffusion.predictions", "velocity"))
    settings = {"shift": math.exp(mu), "terminal": 0.1}
    grid = config.resolve("sampling.grids", "shifted", **settings)(path, 10)
    np.testing.assert_allclose(grid, scheduler.sigmas.numpy(), atol=1e-6)
    apply = models.apply_fn(model.clone(time_scale=1.0))

    @quick
    def draw(params, x, cond):
        solver = config.resolve("sampling.solvers", "euler")
        denoise = denoiser(process, apply, params, cond)
        first = x[:, :1]

        def held(x, t):  # the first frame of every clip is given
            x = jnp.concatenate([first, x[:, 1:]], 1)
            t = jnp.broadcast_to(t[:, None], x.shape[:2]).at[:, 0].set(0)
            return denoise(x, t).at[:, :1].set(first)

        return sample(rng.root(0), held if known else denoise, path, solver, grid, x)

    told = Cond(**{k: jnp.asarray(arrays[k]) for k in ("context", "context_mask")})
    params = layout.to_params(state, model, SHAPE)
    found = draw(params, jnp.asarray(arrays["x"]), told)
    want = x.numpy()
    if known:
        found = found.at[:, :1].set(want[:, :1])
    np.testing.assert_allclose(found, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_parameters_of_diffusers(size):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    own = config.resolve("models", "wan", size=size, in_channels=128)
    with torch.device("meta"):
        other = diffusers.LTXVideoTransformer3DModel(
            num_layers=own.depth,
            num_attention_heads=own.heads,
            attention_head_dim=own.width // own.heads,
            cross_attention_dim=own.width,
        )
    count = models.count_params(abstract(own, (2, 4, 4, 128)))
    assert count == sum(p.numel() for p in other.parameters())


@pytest.mark.parametrize("count", [5, 8, 341, 682])
def test_frequencies_are_rounded_as_by_diffusers(count):
    """Those of 6 * count channels: the angles of two positions, seen at the first token."""
    torch = pytest.importorskip("torch")
    attention = importlib.import_module("diffusers.models.transformers.transformer_ltx")
    rope = attention.LTXVideoRotaryPosEmbed(6 * count)
    where = torch.tensor([[[0.3, 1.7], [32.0, 96.0], [64.0, 480.0]]])
    cos, _ = rope(torch.zeros(1, 2, 1), video_coords=where)
    position = importlib.import_module("dit.models.positions")
    share = jnp.asarray(where.numpy() / np.array([20, 2048, 2048], np.float32)[:, None])
    found, _ = position.spanning(share.transpose(0, 2, 1), 3, 2 * count)
    np.testing.assert_allclose(found.reshape(1, 2, -1), cos[..., ::2], atol=5e-3)
    assert (np.abs(found.reshape(1, 2, -1) - cos[..., ::2].numpy()) < 1e-5).mean() > 0.85
