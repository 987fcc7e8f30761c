"""Weights of autoencoders in both layouts: all of them used, exactly, in both directions."""

import autoencoder_cases as cases
import autoencoder_files as made
import jax
import numpy as np
import pytest
from weights_files import write_json, write_safetensors

from dit import config, convert
from dit.codecs import autoencoder_kl
from dit.codecs.autoencoder_weights import open_weights
from dit.interop import autoencoder_diffusers, autoencoder_original
from dit.interop.autoencoder import describe
from dit.parallel.fingerprints import fingerprints
from dit.parallel.frozen import place
from dit.types import UserError

LAYOUTS = {"diffusers": autoencoder_diffusers, "original": autoencoder_original}


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.first
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_state_describes_its_network_and_comes_back_as_it_was(kind, layout, old):
    model, params, state = made.state_of(kind, layout, old)
    weights, room = config.resolve("interop", f"autoencoder_{layout}"), LAYOUTS[layout]
    settings = {"norm_num_groups": cases.KINDS[kind]["norm_groups"]}
    assert describe(state, room.names(state), settings) == model
    found = weights.to_params(state, model, cases.shape_of(model))
    assert equal(found, params)
    again = weights.to_state(found, model, cases.shape_of(model))
    assert old or (again.keys() == state.keys() and equal(again, state))
    for name in (next(iter(state)), list(state)[-1]):
        with pytest.raises(UserError, match="missing"):
            weights.to_params(
                {n: x for n, x in state.items() if n != name}, model, cases.shape_of(model)
            )
    with pytest.raises(UserError, match="not used"):
        weights.to_params({**state, "encoder.more": np.zeros(3)}, model, cases.shape_of(model))


def test_levels_are_numbered_from_the_finest_in_one_layout_and_the_coarsest_in_the_other():
    model, _, ours = made.state_of("flux", "original")  # 8, 8 and 16 channels
    theirs = made.state_of("flux", "diffusers")[2]
    name = "decoder.up.{}.block.0.conv1.weight", "decoder.up_blocks.{}.resnets.0.conv1.weight"
    assert [len(ours[name[0].format(i)]) for i in range(3)] == [8, 8, 16]
    assert [len(theirs[name[1].format(i)]) for i in range(3)] == [16, 8, 8]
    assert "decoder.up.0.upsample.conv.weight" not in ours  # nothing is finer than the finest
    assert "decoder.up_blocks.2.upsamplers.0.conv.weight" not in theirs
    assert ours["decoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    assert theirs["decoder.mid_block.attentions.0.to_q.weight"].shape == (16, 16)
    assert model.halvings == 2


def test_a_directory_in_parts_a_file_of_a_whole_model_and_a_folder_vae(tmp_path):
    _, params = made.save(tmp_path / "whole")
    made.save(tmp_path / "parts", parts=3)
    made.save(tmp_path / "pipeline" / "vae")
    state = made.state_of("sd", "original", seed=0)[2]
    more = {"model.diffusion_model.out.0.weight": np.ones(3, np.float32)}
    within = {f"first_stage_model.{name}": x for name, x in state.items()}
    write_safetensors(tmp_path / "sd.safetensors", {**within, **more})
    write_json(tmp_path / "config.json", {"norm_num_groups": 4})
    for name in ("whole", "parts", "pipeline", "sd.safetensors"):
        found = open_weights(str(tmp_path / name))
        placed = place({"codec": found.weights}, None)["codec"]
        assert equal(placed["network"], params)
        assert jax.tree.map(np.shape, placed) == jax.tree.map(
            lambda x: x.shape, found.weights.abstract
        )
        assert found.scale == (None if "." in name else 0.18215)
    other = made.save(tmp_path / "other", seed=1)[1]
    assert fingerprints(params) != fingerprints(other)


def test_what_does_not_go_together_is_refused_before_anything_is_read(tmp_path):
    made.save(tmp_path / "sd")
    path = str(tmp_path / "sd")

    def refused(match, **keywords):
        with pytest.raises(UserError, match=match):
            config.resolve("codecs", "autoencoder_kl", **{"path": path, **keywords})

    refused("there is nothing at", path=str(tmp_path / "nowhere"), family="sd")
    refused("no config.json", path=str(tmp_path), family="sd")
    refused("expected 'sd'", family="sd4")
    refused("lack the statistics", family="flux2")
    refused("give one of them", family="sd", scale=2.0)
    refused("only a run has averages", which="ema_10")
    refused("tile=2", tile=2)
    settings = made.settings_of("sd")
    for change, match in (
        ({"block_out_channels": [8, 32]}, "block_out_channels"),
        ({"latent_channels": 8}, "latent_channels=8"),
        ({"act_fn": "relu"}, "act_fn='relu'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"norm_num_groups": 3}, "norm_groups=3"),
        ({"scaling_factor": "large"}, "scaling_factor='large'"),
    ):
        write_json(tmp_path / "sd" / "config.json", settings | change)
        refused(match)
    write_json(tmp_path / "sd" / "config.json", {"norm_num_groups": 4})
    refused("codec.family, one of sd, sdxl")
    state = made.state_of("sd")[2]
    write_safetensors(tmp_path / "sd" / made.FILE, {**state, "more": np.zeros(2, np.float32)})
    refused("not used", family="sd")
    write_safetensors(tmp_path / "sd" / made.FILE, {"more": np.zeros(2, np.float32)})
    refused("are they an AutoencoderKL's", family="sd")


def test_the_rule_follows_from_the_files_unless_it_is_given(tmp_path):
    rules = {kind: x for kind, x in autoencoder_kl.FAMILIES.items() if kind in cases.KINDS}
    for kind in rules:
        made.save(tmp_path / kind, kind)
    for kind, rule in rules.items():
        found = open_weights(str(tmp_path / kind))
        assert autoencoder_kl.choose(found, None, None, None) == rule
        assert autoencoder_kl.choose(found, "sdxl", None, None).scale == 0.13025
        assert autoencoder_kl.choose(found, None, 3.0, None) == autoencoder_kl.Rule(3.0)


def test_each_channel_may_have_a_mean_and_a_deviation_in_the_files(tmp_path):
    made.save(tmp_path / "sd")
    told = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [1.0, 2.0, 4.0, 0.5]}
    settings = {k: v for k, v in made.settings_of("sd").items() if k != "shift_factor"}
    for scale in (1.0, 0.5):
        write_json(tmp_path / "sd/config.json", settings | told | {"scaling_factor": scale})
        found = open_weights(str(tmp_path / "sd"))
        assert found.shift == (0.5, -1.0, 0.0, 2.0)
        assert found.scale == tuple(scale * x for x in (1.0, 0.5, 0.25, 2.0))
    for change, match in (
        ({"latents_std": [1.0, 2.0, 4.0]}, r"latents_std=\[1.0, 2.0, 4.0\]; expected 4 numbers"),
        ({"latents_std": [1.0, 2.0, 0.0, 1.0]}, "expected positive numbers"),
        ({"latents_mean": None}, "latents_mean=None; expected 4 numbers"),
        ({"latents_mean": [1.0, float("nan"), 0.0, 1.0]}, "expected 4 numbers"),
    ):
        write_json(tmp_path / "sd/config.json", settings | told | change)
        with pytest.raises(UserError, match=match):
            open_weights(str(tmp_path / "sd"))


@pytest.mark.torch
def test_va_vae_is_read_with_its_statistics_beside_it_and_converted(tmp_path):
    """As its authors publish it: with what only its training needs, and latents_stats.pt."""
    torch = pytest.importorskip("torch")
    model, params, state = made.state_of("vavae", "original")
    more = {"foundation_model.model.cls_token": np.ones(3), "linear_proj.weight": np.ones(3)}
    more |= {"loss.logvar": np.zeros(1)}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in (state | more).items()}
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "vavae.pt")
    mean, std = torch.arange(6.0), 1 + torch.arange(6.0)
    stats = {"mean": mean.reshape(1, 6, 1, 1), "std": std.reshape(1, 6, 1, 1)}
    torch.save(stats, tmp_path / "latents_stats.pt")
    groups = {"norm_num_groups": 4}
    write_json(tmp_path / "config.json", groups)
    found = open_weights(str(tmp_path / "vavae.pt"))
    assert found.model == model
    assert equal(place({"codec": found.weights}, None)["codec"]["network"], params)
    assert (found.shift, found.scale) == (tuple(range(6)), tuple(1 / n for n in range(1, 7)))
    given = ["--from=autoencoder_original", f"--weights={tmp_path}/vavae.pt"]
    convert.main([*given, f"--workdir={tmp_path}/run"])
    again = open_weights(str(tmp_path / "run"))
    assert (again.model, again.shift) == (model, found.shift)
    np.testing.assert_allclose(again.scale, found.scale, rtol=1e-12)
    assert equal(place({"codec": again.weights}, None)["codec"]["network"], params)
    convert.main(["--to=autoencoder_diffusers", f"--workdir={tmp_path}/run", f"--out={tmp_path}/d"])
    back = open_weights(str(tmp_path / "d"))
    assert (back.model, back.shift) == (model, found.shift)
    write_json(tmp_path / "config.json", groups | {"scaling_factor": 0.5})
    assert open_weights(str(tmp_path / "vavae.pt")).scale == 0.5
    torch.save({"mean": mean}, tmp_path / "latents_stats.pt")
    write_json(tmp_path / "config.json", groups)
    with pytest.raises(UserError, match=r"expected mean and std in .*latents_stats.pt'; got mean"):
        open_weights(str(tmp_path / "vavae.pt"))
