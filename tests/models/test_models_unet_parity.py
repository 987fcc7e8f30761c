"""The U-Net against an implementation that nobody here wrote, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, models
from dit.types import Cond

KINDS = {  # of ADM and of DDPM: keywords of the other library, and ours
    "adm": (
        {
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 4,
            "num_class_embeds": 5,
            "attention_head_dim": 8,
        },
        {"head_size": 8, "num_classes": 5},
    ),
    "ddpm": (
        {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": None,
        },
        {"heads": 1, "scale_shift": False, "resblock_updown": False},
    ),
}


def linear(state, name):
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def conv(state, name):
    kernel = state[f"{name}.weight"].transpose(2, 3, 1, 0)
    return {"kernel": kernel, "bias": state[f"{name}.bias"]}


def norm(state, name):
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def block(state, name):
    out = {
        "norm_in": norm(state, f"{name}.norm1"),
        "conv_in": conv(state, f"{name}.conv1"),
        "norm_out": norm(state, f"{name}.norm2"),
        "conv_out": conv(state, f"{name}.conv2"),
    }
    d = out["conv_in"]["bias"].size
    part = linear(state, f"{name}.time_emb_proj")
    out["modulation"] = {"kernel": part["kernel"].reshape(-1, part["bias"].size // d, d)}
    out["modulation"]["bias"] = part["bias"].reshape(-1, d)
    if f"{name}.conv_shortcut.weight" in state:
        shortcut = conv(state, f"{name}.conv_shortcut")
        out["shortcut"] = shortcut | {"kernel": shortcut["kernel"][0, 0]}
    return out


def attention(state, name, head_size):
    parts = [linear(state, f"{name}.{part}") for part in ("to_q", "to_k", "to_v")]
    d = parts[0]["bias"].size
    head = (d // (head_size or d), head_size or d)
    qkv = {k: np.stack([p[k] for p in parts], -2) for k in ("kernel", "bias")}
    qkv = {k: x.reshape(*x.shape[:-1], *head) for k, x in qkv.items()}
    out = linear(state, f"{name}.to_out.0")
    out["kernel"] = out["kernel"].reshape(*head, d)
    return {"norm": norm(state, f"{name}.group_norm"), "attention": {"qkv": qkv, "out": out}}


def to_params(state, levels, head_size):
    """The other library's arrays as our parameters; two layers of attention a level at most."""
    params = {
        "embed": conv(state, "conv_in"),
        "time": {"in": linear(state, "time_embedding.linear_1")},
        "norm": norm(state, "conv_norm_out"),
        "final": conv(state, "conv_out"),
    }
    params["time"]["out"] = linear(state, "time_embedding.linear_2")
    if "class_embedding.weight" in state:
        table = state["class_embedding.weight"]
        params["label"] = {"table": np.pad(table, ((0, 1), (0, 0)))}  # the null class
    for side, places in (("down", range(levels)), ("up", range(levels - 1, -1, -1))):
        for i, level in enumerate(places):
            at = f"{side}_blocks.{i}"
            for j in range(9):
                if f"{at}.resnets.{j}.norm1.weight" in state:
                    params[f"{side}_{level}_{j}"] = {"block": block(state, f"{at}.resnets.{j}")}
                if f"{at}.attentions.{j}.to_q.weight" in state:
                    found = attention(state, f"{at}.attentions.{j}", head_size)
                    params[f"{side}_{level}_{j}"]["space"] = found
            resampler = f"{at}.{side}samplers.0"
            name = f"{side}_{level}_{'halve' if side == 'down' else 'double'}"
            if f"{resampler}.norm1.weight" in state:
                params[name] = {"block": block(state, resampler)}
            elif f"{resampler}.conv.weight" in state:
                params[name] = {"conv": conv(state, f"{resampler}.conv")}
    for j in range(2):
        params[f"middle_{j}"] = {"block": block(state, f"mid_block.resnets.{j}")}
    params["middle_0"]["space"] = attention(state, "mid_block.attentions.0", head_size)
    return params


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_unet(kind):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs, ours = KINDS[kind]
    torch.manual_seed(0)
    other = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        **theirs,
    ).eval()
    for name, p in other.named_parameters():  # all of them: zeros would hide what follows
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in name and "weight" in name else 0)
    x, t = torch.randn(3, 3, 4, 8), torch.tensor([0.0, 17.0, 99.0])
    y = torch.tensor([2, 0, 4]) if "num_classes" in ours else None
    out = other(x, timestep=t, class_labels=y).sample
    loss = out.square().mean()
    loss.backward()
    model = config.resolve(
        "models",
        "unet",
        width=8,
        multipliers=(1, 2),
        depth=1,
        attention_levels=(1,),
        norm_groups=4,
        in_channels=3,
        learn_sigma=True,
        **ours,
    )

    def params_of(arrays):
        return to_params({k: v.detach().numpy() for k, v in arrays}, 2, ours.get("head_size"))

    params = params_of(other.state_dict().items())
    shapes = jax.eval_shape(lambda key: models.init(model, key, (1, 4, 8, 3)), jax.random.key(0))
    assert jax.tree.map(lambda p: p.shape, shapes) == jax.tree.map(lambda p: p.shape, params)
    images = jnp.moveaxis(jnp.asarray(x.numpy()), 1, -1)[:, None]
    cond = Cond(label=None if y is None else jnp.asarray(y.numpy()))

    def total(params):
        out = models.apply_fn(model)(params, images, jnp.asarray(t.numpy()), cond)
        return jnp.square(out).mean(), jnp.moveaxis(out[:, 0], -1, 1)

    (value, got), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(got, out.detach().numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    expected = params_of((k, p.grad) for k, p in other.named_parameters())
    for path, grad in jax.tree_util.tree_leaves_with_path(expected):
        found = grads
        for part in path:
            found = found[part.key]
        name = jax.tree_util.keystr(path)
        atol = 2e-4 * np.abs(grad).max() + 1e-6  # a bias of keys changes nothing
        np.testing.assert_allclose(found, grad, atol=atol, err_msg=name)
