"""Wan and LTX-Video by command: weights in and out; a small one trained, drawn from and adapted."""

import jax
import numpy as np
import pytest
from models_cases import params_of
from wan_cases import SETTINGS, format_of
from weights_files import write_json, write_safetensors

from dit import config, convert, draw, experiment, models, sample, train
from dit.interop import folder


def described(kind):
    """The experiment of which a ``config.json`` tells."""
    told = config.resolve("interop", format_of(kind)).sections({}, SETTINGS[kind])
    example = {"shape": list(told["data"]["shape"]), "classes": None}
    latents = {"codec": {"name": "latent", "scale": 1.0}, "steps": 1, "batch_size": 1}
    return experiment.build({**told, **latents, "concat": {"name": "none"}}, example)


@pytest.mark.first
@pytest.mark.parametrize("kind", ["t2v", "i2v", "ltx"])
def test_a_directory_of_diffusers_becomes_a_workdir_and_comes_back(kind, tmp_path):
    given = described(kind)
    params = jax.tree.map(np.asarray, params_of(given.model, given.shape, noise=0.1))
    form = format_of(kind)
    state = config.resolve("interop", form).to_state(params, given.model, given.shape)
    (tmp_path / "in").mkdir()
    write_safetensors(tmp_path / "in/diffusion_pytorch_model.safetensors", state)
    write_json(tmp_path / "in/config.json", SETTINGS[kind])
    place = f"--workdir={tmp_path}/run"
    codec = ("--config.codec.name=latent", "--config.codec.scale=1.0")
    convert.main([f"--from={form}", f"--weights={tmp_path}/in", place, *codec])
    convert.main([f"--to={form}", f"--out={tmp_path}/out", place])
    back, settings, _ = folder.opened(str(tmp_path / "out"))
    assert settings == SETTINGS[kind]
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(np.asarray(back[key]), value, err_msg=key)


@pytest.mark.torch
@pytest.mark.parametrize("kind", SETTINGS)
def test_what_diffusers_builds_of_the_same_config_has_as_many_parameters(kind):
    diffusers = pytest.importorskip("diffusers")
    network = getattr(diffusers, SETTINGS[kind]["_class_name"])
    theirs = network.from_config(SETTINGS[kind])
    shapes = jax.eval_shape(described(kind).init, jax.random.key(0))
    assert models.count_params(shapes) == sum(p.numel() for p in theirs.parameters())


TINY = {
    **{"data.name": "world", "data.kinds": "('drift','fall')", "data.size": 16, "data.frames": 5},
    **{"batch_size": 8, "text.width": 16, "text.depth": 1, "text.gives": "context"},
    **{"model.name": "wan", "model.depth": 2, "model.width": 32, "model.heads": 2},
    **{"schedule.name": "constant", "samples.every": 0, "samples.num": 0, "log.every": 1},
    **{"optimizer.name": "adamw", "optimizer.lr": 3e-3, "ema.half_lives": "(5.0,)"},
}


def run(place, steps, **more):
    """Train to so many steps."""
    asked = TINY | {"steps": steps} | more
    options = [f"--config.{k.replace('__', '.')}={v}" for k, v in asked.items()]
    assert train.main(["--config=shapes_text", f"--workdir={place}", *options]) in (0, None)
    made = draw.load_experiment(str(place))
    return made, draw.load_params(made, str(place), "params", None)


@pytest.mark.slow
def test_a_small_one_learns_from_moving_captioned_clips_and_is_adapted(tmp_path):
    made, _ = run(tmp_path / "base", 2)
    assert type(made.model.model).__name__ == "Wan"
    lora = {"lora__rank": 2, "init_from__path": tmp_path / "base", "mesh__fsdp": 4}
    targets = "('*attention*/kernel','*cross*/kernel')"
    _, once = run(tmp_path / "once", 4, **lora, lora__targets=targets)
    run(tmp_path / "twice", 2, **lora, lora__targets=targets)
    _, twice = run(tmp_path / "twice", 4, **lora, lora__targets=targets)
    assert (once.step, once.fingerprint) == (4, twice.fingerprint)
    merged = ["--merge", f"--workdir={tmp_path}/once", f"--out={tmp_path}/merged"]
    convert.main([*merged, "--which=params"])
    drawn = []
    for name, which in (("base", "params"), ("once", "params"), ("merged", None)):
        asked = ["--prompt=a red circle moves left", "--steps=2", "--solver=euler"]
        asked += [f"--out={tmp_path}/{name}.npz", *([f"--ema={which}"] if which else [])]
        sample.main([f"--workdir={tmp_path}/{name}", *asked])
        drawn.append(np.load(tmp_path / f"{name}.npz")["samples"].astype(int))
    assert drawn[0].shape[1:] == (5, 16, 16, 3)
    assert np.abs(drawn[1] - drawn[2]).max() <= 1
    assert (drawn[0] != drawn[1]).any()
