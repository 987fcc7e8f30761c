"""MMDiT against diffusers' networks at tiny sizes: values, gradients, names and round trips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import quick

from dit import config, models
from dit.types import Cond

pytestmark = pytest.mark.torch
SHAPE = (1, 8, 12, 4)  # f h w c
BATCH, LENGTH = 2, 5


def sd3(diffusers, dual=()):
    """Its own arguments, and how it is called with ours."""
    made = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=7,
        caption_projection_dim=24,
        pooled_projection_dim=5,
        pos_embed_max_size=12,
        dual_attention_layers=dual,
        qk_norm="rms_norm" if dual else None,
    )

    def call(x, t, context, pooled):
        return made(x, context, pooled, 1000 * t).sample

    return made, call


FAMILIES = {
    "sd3": (
        sd3,
        "diffusers_sd3",
        {"size": "SD3-medium", "depth": 3, "position_table": (12, 8), "time_scale": 1000.0},
        ("context", "pooled"),
    ),
    "sd3.5": (
        functools.partial(sd3, dual=(0,)),
        "diffusers_sd3",
        {"size": "SD3.5-medium", "depth": 3, "dual_depth": 1, "position_table": (12, 8)}
        | {"time_scale": 1000.0},
        ("context", "pooled"),
    ),
}
TINY = {"width": 24, "heads": 3, "in_channels": 4}
DIMS = {"context_dim": 7, "pooled_dim": 5}


@functools.cache
def family(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    make, format, options, takes = FAMILIES[name]
    torch.manual_seed(0)
    other, call = make(diffusers)
    for key, p in other.named_parameters():  # all of them: zeros would hide what follows
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in key and p.ndim == 1 else 0)
    dims = {k: v for k, v in DIMS.items() if k.removesuffix("_dim") in takes}
    model = config.resolve("models", "mmdit", **{**options, **TINY, **dims})
    layout = config.resolve("interop", format)
    state = {k: v.detach().numpy() for k, v in other.state_dict().items()}
    return other, call, model, layout, state


def given(name):
    draw = np.random.default_rng(0)
    takes = FAMILIES[name][3]
    arrays = {
        "x": draw.standard_normal((BATCH, *SHAPE)),
        "t": np.array([0.013, 0.7]),
        "context": draw.standard_normal((BATCH, LENGTH, 7)),
        "pooled": draw.standard_normal((BATCH, 5)),
        "guidance": np.array([1.0, 3.5]) / 1000,
        "context_mask": np.arange(LENGTH) < np.array([[3], [5]]),
    }
    arrays = {k: v if v.dtype == bool else v.astype(np.float32) for k, v in arrays.items()}
    return {k: v for k, v in arrays.items() if k in ("x", "t", *takes)}


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
