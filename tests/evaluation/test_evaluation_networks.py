"""The networks of the papers' scores against code nobody here wrote, at random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_fidelity_parts import inception, pictures

from dit import config
from dit.evaluation.features import clip, dinov2, inception_v3, networks, specs
from dit.evaluation.features.resize import scaled
from dit.interop import files
from dit.types import UserError

torch_needed = pytest.mark.torch


@torch_needed
def test_inception_is_that_of_fid(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = inception(tmp_path / "random.pth")
    ours = config.resolve("evaluation.features", "inception_v3", path=str(tmp_path / "random.pth"))
    x = pictures(2, 40, 52)
    spatial = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *a: spatial.append(a[-1]))
    with torch.no_grad():
        pool, logits = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))[3:5]
    found = jax.jit(ours.outputs)(ours.params, x)
    wanted = {"features": pool, "logits": logits}
    wanted["spatial"] = spatial[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    assert found["spatial"].shape == (2, 2023)
    for name, value in wanted.items():
        scale = np.abs(value.numpy()).max()
        np.testing.assert_allclose(found[name], value, atol=1e-4 * scale)
    named = {"inception_v3": "tensorflow", "inception_v3_pytorch_fid": "pytorch_fid"}
    for name, port in named.items():
        made = inception_v3.build(path=str(tmp_path / "random.pth"), port=port)
        assert (made.name, made.protocol["port"]) == (name, port)
        assert made.protocol["weights"] == ours.protocol["weights"]
    other = jax.jit(made.outputs)(made.params, x)
    half = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32)), (299, 299), mode="bilinear"
    )
    scaled = 2 * half.permute(0, 2, 3, 1).numpy() / 255 - 1
    wanted = jax.jit(inception_v3.outputs)(made.params, scaled)["features"]
    np.testing.assert_allclose(other["features"], wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(other["features"] - found["features"]).max() > 1e-2  # so the port must be named
    broken = {k: v for k, v in theirs.state_dict().items() if k != "fc.bias"}
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=r"no weights of InceptionV3 for FID: fc\.bias"):
        inception_v3.build(path=str(tmp_path / "broken.pth"))


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def randomised(torch, model):
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        scale = 0.3 if "norm" in name.lower() or "lambda" in name else 0.1
        p.data = p.data + scale * torch.randn_like(p)
    return model.eval()


@torch_needed
@pytest.mark.parametrize(
    ("gated", "registers", "side"), [(False, False, 224), (True, False, 70), (False, True, 224)]
)
def test_dinov2_is_that_of_transformers_and_of_the_authors_names(gated, registers, side, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    given = {**TINY, "image_size": 518, "patch_size": 14, "use_swiglu_ffn": gated}
    settings = getattr(transformers, f"{kind}Config")(**given)
    there = randomised(torch, getattr(transformers, f"{kind}Model")(settings))
    there.save_pretrained(tmp_path)
    state = dict(files.read(tmp_path / "model.safetensors"))
    model = dinov2.network(32, 2, 2, grid=side // 14, gated=gated, registers=registers)
    params = dinov2.params_of(state, model, "transformers", side)
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = there(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).pooler_output
    found = jax.jit(model.apply)({"params": params}, x)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted.numpy()).max())
    theirs = dinov2.params_of(authors(state), model, "transformers", side)
    assert jax.tree.all(jax.tree.map(np.array_equal, theirs, params))
    timm = {k.replace("w12", "fc1").replace("w3", "fc2"): v for k, v in authors(state).items()}
    theirs = dinov2.params_of(timm, model, "transformers", side)
    assert jax.tree.all(jax.tree.map(np.array_equal, theirs, params))


def authors(state):
    """A state of ``transformers`` under the authors' names."""
    found = {}
    for name, x in state.items():
        if "attention.attention" in name:
            if ".query." in name:
                parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
                name = name.replace("attention.attention.query", "attn.qkv")
                found[name.replace("encoder.layer", "blocks")] = np.concatenate(parts)
            continue
        for there, here in {
            "encoder.layer": "blocks",
            "embeddings.patch_embeddings.projection": "patch_embed.proj",
            "embeddings.position_embeddings": "pos_embed",
            "embeddings.": "",
            "attention.output.dense": "attn.proj",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
            "weights_in": "w12",
            "weights_out": "w3",
            "layernorm": "norm",
        }.items():
            name = name.replace(there, here)
        found[name] = x
    return found


@torch_needed
@pytest.mark.parametrize("side", [224, 252, 518])
def test_positions_are_scaled_as_the_port_that_is_named_does(side):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1, 1 + 37 * 37, 5)).astype(np.float32)
    grid = torch.from_numpy(table[:, 1:].reshape(1, 37, 37, 5)).permute(0, 3, 1, 2)
    n = side // 14
    scale = lambda **how: torch.nn.functional.interpolate(grid, mode="bicubic", **how)  # noqa: E731
    wanted = {
        ("timm", False): scale(size=(n, n), antialias=True),
        ("hub", True): scale(size=(n, n), antialias=True),
        ("transformers", False): scale(size=(n, n)),
        ("hub", False): scale(scale_factor=((n + 0.1) / 37,) * 2) if n != 37 else grid,
    }
    found = {}
    for (port, registers), value in wanted.items():
        found[port, registers] = dinov2.positions(table, side, port, registers)
        np.testing.assert_array_equal(found[port, registers][:, 0], table[:, 0])
        value = value.permute(0, 2, 3, 1).reshape(1, n * n, 5)
        np.testing.assert_allclose(found[port, registers][:, 1:], value, atol=2e-5)
    if side != 518:
        apart = np.abs(found["hub", False] - found["transformers", False]).max()
        assert min(apart, np.abs(found["timm", False] - found["hub", False]).max()) > 1e-3


@torch_needed
def test_clips_image_tower_is_that_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    vision = {**TINY, "intermediate_size": 48, "image_size": 42, "patch_size": 14}
    settings = transformers.CLIPConfig(
        vision_config=vision,
        text_config={**TINY, "intermediate_size": 48, "vocab_size": 99},
        projection_dim=24,
    )
    there = randomised(torch, transformers.CLIPModel(settings))
    there.save_pretrained(tmp_path)
    ours = clip.build(path=str(tmp_path))
    assert (ours.name, ours.side, ours.resize) == ("clip_32_14", 42, "pil_bicubic")
    x = pictures(2, 42, 42)
    mean, std = np.array(clip.MEAN), np.array(clip.STD)
    pixels = ((x / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        found = there.get_image_features(pixel_values=torch.from_numpy(pixels))
    wanted = getattr(found, "pooler_output", found).numpy()
    np.testing.assert_allclose(ours.pictures(x), wanted, atol=1e-4 * np.abs(wanted).max())


def test_pictures_are_scaled_by_the_rule_that_is_named():
    """Pillow's own, to a byte's last bit, and numbers worked out by hand."""
    from PIL import Image

    x = pictures(2, 37, 50)
    for side in (16, 37, 96):
        wanted = [np.asarray(Image.fromarray(p).resize((side, side), Image.BICUBIC)) for p in x]
        found = np.asarray(scaled(jnp.asarray(x, jnp.float32), side, "pil_bicubic"))
        assert np.abs(found - np.stack(wanted)).max() <= 1
        assert np.mean(found != np.stack(wanted)) < 1e-3
    row = jnp.array([0, 10, 40, 200], jnp.float32).reshape(1, 1, 4, 1)
    tf1 = [0, 10 * 0.8, 10 + 30 * 0.6, 40 + 160 * 0.4, 200]
    np.testing.assert_allclose(scaled(row, 5, "bilinear_tf1")[0, 0, :, 0], tf1, rtol=1e-6)
    half = [0, 7, 25, 40 + 160 * 0.3, 200]
    np.testing.assert_allclose(scaled(row, 5, "bilinear")[0, 0, :, 0], half, rtol=1e-6)


@pytest.mark.parametrize("name", ["inception_v3", "dinov2", "clip"])
def test_weights_that_are_not_at_hand_are_said_where_to_get(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"{name}' are not at hand .*https://.*{name}:path=FILE"):
        config.resolve("evaluation.features", name)


def test_several_networks_and_their_options_are_one_option():
    given = ["dinov2:size=b,port=timm,inception_v3", "efficientnet_lite0"]
    assert specs(given) == ["dinov2:size=b,port=timm", "inception_v3", "efficientnet_lite0"]
    assert specs(["inception_v3,dinov2:size=s"]) == ["inception_v3", "dinov2:size=s"]
    with pytest.raises(UserError, match="'port=timm'"):
        specs(["port=timm"])
    with pytest.raises(UserError, match="expected 's' or 'b'"):
        networks(["dinov2:size=x"])
