"""Wan against diffusers' network at tiny sizes: values, gradients, names and round trips."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, quick

from dit import config, models, rng
from dit.diffusion.process import Process, denoiser
from dit.models import wan_sizes
from dit.models.layers import Mlp
from dit.sampling.sample import sample
from dit.types import Cond, UserError

pytestmark = pytest.mark.torch
BATCH, GRID = 2, (3, 3, 5)  # of patches: odd, and not square
KINDS = {  # diffusers' arguments, ours, frames of a patch, tokens of the text, how many have a time
    "t2v": ({}, {"size": "Wan2.1-T2V-1.3B"}, 1, 7, ()),
    "i2v": (
        {"in_channels": 7, "image_dim": 6, "added_kv_proj_dim": 36},
        {"size": "Wan2.1-I2V-14B", "concat_channels": 3, "image_context": (4, 6)},
        1,
        512,  # by which that library tells text from image
        (),
    ),
    "flf2v": (
        {"in_channels": 7, "image_dim": 6, "added_kv_proj_dim": 36, "pos_embed_seq_len": 4},
        {"size": "Wan2.1-FLF2V-14B", "concat_channels": 3, "image_context": (4, 6)},
        1,
        512,
        (),
    ),
    "ti2v": ({}, {"size": "Wan2.2-TI2V-5B"}, 1, 5, GRID),
    "long patches": ({"patch_size": (2, 2, 2)}, {"patch": (2, 2, 2)}, 2, 5, ()),
}
TINY = {"depth": 2, "width": 36, "heads": 3, "mlp_ratio": 40 / 36, "context_dim": 7}
INPUTS = ("x", "context", "concat", "image_context")


def shape_of(kind):
    """Of a clip, ``f h w c``."""
    return (GRID[0] * KINDS[kind][2], 2 * GRID[1], 2 * GRID[2], 4)


@functools.cache
def network(kind):
    """Diffusers' network, how it is called with our arrays, ours, the format and the weights."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs, ours, frames, _, times = KINDS[kind]
    torch.manual_seed(0)
    common = {"attention_head_dim": 12, "num_attention_heads": 3, "ffn_dim": 40, "text_dim": 7}
    arguments = {"num_layers": 2, "in_channels": 4, "out_channels": 4, **common, **theirs}
    other = diffusers.WanTransformer3DModel(**arguments)
    for key, p in other.named_parameters():  # all of them: zeros would hide what follows
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in key and key.endswith("weight") else 0)

    def call(x, t, context, concat=None, image_context=None):
        video = x if concat is None else torch.cat([x, concat], -1)
        t = t[:, ::frames, ::2, ::2].flatten(1) if times else t
        if image_context is not None and kind == "flf2v":  # of two images
            image_context = image_context.reshape(2 * BATCH, 2, 6)
        video = video.permute(0, 4, 1, 2, 3)
        return other(video, 1000 * t, context, image_context).sample.permute(0, 2, 3, 4, 1)

    more = {} if "size" in ours else {"null": "zero"}
    model = config.resolve(
        "models", "wan", in_channels=4, time_scale=1000.0, **{**ours, **TINY, **more}
    )
    state = {k: v.detach().numpy() for k, v in other.state_dict().items()}
    return other, call, model, config.resolve("interop", "diffusers_wan"), state


def given(kind):
    """Our arrays."""
    draw, shape = np.random.default_rng(0), shape_of(kind)
    model, (*_, length, times) = network(kind)[2], KINDS[kind]
    t = np.array([0.013, 0.125])  # of 1000 t the sinusoids differ by the rounding of it
    if times:
        t = draw.choice([0.0, *t], (BATCH, *times))
        for axis, size in enumerate(model.patch, 1):
            t = t.repeat(size, axis)
    arrays = {
        "x": draw.standard_normal((BATCH, *shape)),
        "t": t,
        "context": draw.standard_normal((BATCH, length, 7)),
    }
    arrays["context"][0, 3:] = 0  # as where a prompt is shorter
    if model.concat_channels:
        arrays["concat"] = draw.standard_normal((BATCH, *shape[:3], 3))
    if model.image_context:
        arrays["image_context"] = draw.standard_normal((BATCH, *model.image_context))
    return {k: v.astype(np.float32) for k, v in arrays.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_diffusers(kind):
    torch = pytest.importorskip("torch")
    other, call, model, layout, state = network(kind)
    arrays, shape = given(kind), shape_of(kind)
    theirs = {k: torch.tensor(v, requires_grad=k in INPUTS) for k, v in arrays.items()}
    other.zero_grad()
    out = call(**theirs)
    out.square().mean().backward()

    def loss(params, some, t):
        cond = Cond(**{k: v for k, v in some.items() if k != "x"})
        out = models.apply_fn(model)(params, some["x"], t, cond)
        return jnp.square(out).mean(), out

    params = layout.to_params(state, model, shape)
    t = arrays.pop("t")
    got = quick(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, arrays, t)
    (_, found), (grads, slopes) = got
    want = out.detach().numpy()
    np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())
    for k, slope in slopes.items():
        grad = theirs[k].grad.numpy()
        np.testing.assert_allclose(slope, grad, atol=1e-4 * np.abs(grad).max(), err_msg=k)
    named = dict(other.named_parameters())
    back = layout.to_state(grads, model, shape)
    assert named.keys() == back.keys()
    for key, p in named.items():
        grad = p.grad.numpy()
        atol = 1e-4 * np.abs(grad).max() + 1e-8  # a bias of keys changes nothing
        np.testing.assert_allclose(back[key], grad, atol=atol, err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_out_as_they_went_in_and_have_the_authors_names(kind):
    torch = pytest.importorskip("torch")
    _, _, model, layout, state = network(kind)
    shape = shape_of(kind)
    params = layout.to_params(state, model, shape)
    again = layout.to_state(params, model, shape)
    assert set(again) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    unused = {"blocks.1.attn2.norm_added_q.weight": np.ones(36, np.float32)}  # of early files
    jax.tree.map(
        np.testing.assert_array_equal, layout.to_params(state | unused, model, shape), params
    )
    original = config.resolve("interop", "wan_original")
    written = original.to_state(params, model, shape)
    jax.tree.map(np.testing.assert_array_equal, original.to_params(written, model, shape), params)
    utils = importlib.import_module("diffusers.loaders.single_file_utils")
    named = {k: torch.tensor(v) for k, v in written.items()}
    found = utils.convert_wan_transformer_to_diffusers(named)
    if kind == "flf2v":  # is no longer known there
        place = "condition_embedder.image_embedder.pos_embed"
        found[place] = found.pop("img_emb.emb_pos")
    assert set(found) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(found[key].numpy(), value, err_msg=key)


def test_what_a_format_cannot_hold_is_refused():
    _, _, model, layout, state = network("t2v")
    for change, message in (
        ({"null": "learned"}, "build it with null='zero', or with a size"),
        ({"num_classes": 3}, "takes context, label: build it with these conditions"),
        ({"rope_axes": (0, 6, 6)}, r"build it with rope_axes=\(4, 4, 4\)"),
    ):
        with pytest.raises(UserError, match=message):
            layout.to_params(state, model.clone(**change), shape_of("t2v"))
    wrong = {k: v for k, v in state.items() if "1.attn2.to_q" not in k}
    with pytest.raises(UserError, match=r"missing \['blocks.1.attn2.to_q"):
        layout.to_params(wrong, model, shape_of("t2v"))


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
def test_ten_steps_are_those_of_diffusers(kind):
    """Of the 5B network those with a first frame that is known: it has time 0 and stays."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    _, call, model, layout, state = network(kind)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(10)
    arrays, known = given(kind), kind == "ti2v"
    x, context = torch.tensor(arrays["x"]), torch.tensor(arrays["context"])
    with torch.no_grad():
        for t in scheduler.timesteps:
            times = t.expand(BATCH) / 1000
            if known:
                times = times[:, None, None, None].repeat(1, *x.shape[1:4])
                times[:, 0] = 0
            last = scheduler.step(call(x, times, context), t, x).prev_sample
            x = torch.cat([x[:, :1], last[:, 1:]], 1) if known else last

    path = config.resolve("diffusion.paths", "linear", time_scale=1000.0)
    process = Process(path, config.resolve("diffusion.predictions", "velocity"))
    settings = {"shift": 5.0, "base": "linspace", "last": 5 / 1004}
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

    params = layout.to_params(state, model, shape_of(kind))
    found = draw(params, jnp.asarray(arrays["x"]), Cond(context=jnp.asarray(arrays["context"])))
    want = x.numpy()
    if known:
        found = found.at[:, :1].set(want[:, :1])
    np.testing.assert_allclose(found, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("size", [name for name in wan_sizes.SIZES if name.startswith("Wan")])
def test_published_sizes_have_the_parameters_of_diffusers(size):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    channels = 48 if "5B" in size else 16
    own = config.resolve("models", "wan", size=size, in_channels=channels)
    tokens, image = own.image_context or (None, None)
    with torch.device("meta"):
        other = diffusers.WanTransformer3DModel(
            num_layers=own.depth,
            attention_head_dim=128,
            num_attention_heads=own.heads,
            in_channels=channels + (own.concat_channels or 0),
            out_channels=channels,
            ffn_dim=Mlp.hidden("gelu", own.width, own.mlp_ratio),
            image_dim=image,
            added_kv_proj_dim=None if image is None else own.width,
            pos_embed_seq_len=tokens if own.image_positions else None,
        )
    count = models.count_params(abstract(own, (2, 4, 4, channels)))
    assert count == sum(p.numel() for p in other.parameters())
