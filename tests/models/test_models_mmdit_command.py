"""Published networks by command: from a file of their names to training and to samples."""

import captions
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from models_cases import params_of
from weights_files import write_json, write_safetensors

from dit import config, convert, draw, experiment, models, sample, train
from dit.interop import folder
from dit.training.checkpoint import restore_params

SIZES = {"width": 16, "heads": 2, "context_dim": 7}
NETWORKS = {
    "diffusers_sd3": {"name": "mmdit", "size": "SD3.5-medium", "depth": 3, "dual_depth": 1}
    | {"position_table": (6, 4), "positions": "sincos", "pooled_dim": 5},
    "diffusers_z_image": {"name": "zimage", "size": "Z-Image", "depth": 2, "rope_axes": (2, 2, 4)},
}


@pytest.fixture(scope="module", autouse=True)
def encoded():
    """A source of embeddings."""
    with captions.installed():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("format", NETWORKS)
def test_weights_of_a_file_are_trained_and_sampled(format, tmp_path):
    network = NETWORKS[format] | SIZES
    own = {k: v for k, v in network.items() if k != "name"}
    model = config.resolve("models", network["name"], in_channels=1, **own)
    params = jax.tree.map(np.asarray, params_of(model, (1, 8, 8, 1), noise=0.1))
    state = config.resolve("interop", format).to_state(params, model, (1, 8, 8, 1))
    write_safetensors(tmp_path / "weights.safetensors", state)
    asked = {f"model.{k}": v for k, v in network.items()}
    asked |= {"data.name": "encoded", "data.pooled": network.get("pooled_dim", "none")}
    asked |= {"init_from.path": f"{tmp_path}/weights.safetensors", "init_from.format": format}
    asked["path.time_scale"] = 1000.0
    asked |= {"steps": 1, "batch_size": 8, "schedule.name": "constant", "samples.num": 0}
    asked |= {"optimizer.lr": 1e-12, "optimizer.weight_decay": 0, "samples.every": 0}
    options = [f"--config.{k}={v}" for k, v in asked.items()]
    run = f"--workdir={tmp_path}/run"
    assert train.main(["--config=digits", run, *options]) in (0, None)
    trained = draw.load_experiment(f"{tmp_path}/run")
    abstract = jax.eval_shape(trained.init, jax.random.key(0))
    found = restore_params(tmp_path / "run", abstract, which="params").params
    assert models.count_params(found) == models.count_params(params)
    for name, value in flatten_dict(params, sep="/").items():
        got = flatten_dict(found, sep="/")[name]
        np.testing.assert_allclose(got, value, atol=1e-9, err_msg=name)
    told = trained.conditions_of("held_out", 2)
    assert set(told) == {"context", *(["pooled"] if "pooled_dim" in network else [])}
    drawn = []
    for change in (0, 1):
        np.savez(tmp_path / "cond.npz", **{k: v + change for k, v in told.items()})
        out = f"--out={tmp_path}/out.npz"
        grid = ["--solver=euler", "--steps=2", "--num=2"]
        sample.main([run, f"--cond={tmp_path}/cond.npz", out, *grid])
        drawn.append(np.load(tmp_path / "out.npz")["samples"])
    assert (drawn[0] != drawn[1]).any()


SETTINGS = {  # as diffusers writes them
    "diffusers_sd3": {
        "_class_name": "SD3Transformer2DModel",
        **{"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8},
        **{"caption_projection_dim": 16, "joint_attention_dim": 7, "pooled_projection_dim": 5},
        **{"in_channels": 4, "out_channels": 4, "patch_size": 2, "sample_size": 8},
        **{"pos_embed_max_size": 6, "dual_attention_layers": [0], "qk_norm": "rms_norm"},
    },
    "diffusers_flux": {
        "_class_name": "FluxTransformer2DModel",
        **{"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2},
        **{"attention_head_dim": 12, "joint_attention_dim": 7, "pooled_projection_dim": 5},
        **{"patch_size": 1, "in_channels": 16, "guidance_embeds": True},
        **{"axes_dims_rope": [4, 4, 4]},
    },
    "diffusers_flux2": {
        "_class_name": "Flux2Transformer2DModel",
        **{"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2},
        **{"attention_head_dim": 16, "joint_attention_dim": 7, "in_channels": 4, "mlp_ratio": 2.5},
        **{"patch_size": 1, "axes_dims_rope": [4, 4, 4, 4], "rope_theta": 500.0, "eps": 1e-5},
        **{"guidance_embeds": False},
    },
    "diffusers_qwen_image": {
        "_class_name": "QwenImageTransformer2DModel",
        **{"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12},
        **{"joint_attention_dim": 7, "in_channels": 16, "out_channels": 4, "patch_size": 2},
        **{"axes_dims_rope": [4, 4, 4], "guidance_embeds": False, "zero_cond_t": False},
    },
    "diffusers_z_image": {
        "_class_name": "ZImageTransformer2DModel",
        **{"all_patch_size": [2], "all_f_patch_size": [1], "in_channels": 4, "dim": 24},
        **{"n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "norm_eps": 1e-4},
        **{"cap_feat_dim": 7, "rope_theta": 100.0, "axes_dims": [4, 4, 4], "t_scale": 1000.0},
    },
}


def described(name):
    """The experiment of which a ``config.json`` tells."""
    told = config.resolve("interop", name).sections({}, SETTINGS[name])
    example = {"shape": list(told["data"]["shape"]), "classes": None}
    latents = {"codec": {"name": "latent", "scale": 1.0}, "steps": 1, "batch_size": 1}
    return experiment.build({**told, **latents}, example)


@pytest.mark.first
@pytest.mark.parametrize("name", SETTINGS)
def test_a_directory_of_diffusers_becomes_a_workdir_and_comes_back(name, tmp_path):
    given = described(name)
    params = jax.tree.map(np.asarray, params_of(given.model, given.shape, noise=0.1))
    weights = config.resolve("interop", name)
    state = weights.to_state(params, given.model, given.shape)
    (tmp_path / "in").mkdir()
    write_safetensors(tmp_path / "in/diffusion_pytorch_model.safetensors", state)
    write_json(tmp_path / "in/config.json", SETTINGS[name])
    place = f"--workdir={tmp_path}/run"
    codec = ("--config.codec.name=latent", "--config.codec.scale=1.0")
    convert.main([f"--from={name}", f"--weights={tmp_path}/in", place, *codec])
    convert.main([f"--to={name}", f"--out={tmp_path}/out", place])
    back, settings, _ = folder.opened(str(tmp_path / "out"))
    assert {k: settings[k] for k in SETTINGS[name]} == SETTINGS[name]
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(np.asarray(back[key]), value, err_msg=key)


@pytest.mark.torch
@pytest.mark.parametrize("name", SETTINGS)
def test_what_diffusers_builds_of_the_same_config_has_as_many_parameters(name):
    diffusers = pytest.importorskip("diffusers")
    theirs = getattr(diffusers, SETTINGS[name]["_class_name"]).from_config(SETTINGS[name])
    ours = described(name)
    shapes = jax.eval_shape(ours.init, jax.random.key(0))
    assert models.count_params(shapes) == sum(p.numel() for p in theirs.parameters())
