"""Runs whose codec is an autoencoder: on several devices, resumed, sampled, judged, preflighted."""

import json
import re
import shutil

import autoencoder_files as made
import commands
import jax
import numpy as np
import pytest
import saved_run
from PIL import Image

from dit import draw, storage
from dit.experiment import build
from dit.parallel.fingerprints import fingerprints
from dit.parallel.frozen import identities, place
from dit.training.checkpoint import Checkpoints
from dit.training.program import program
from dit.training.workdir import plain
from dit.types import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of pictures in two classes, and the weights of two autoencoders."""
    root = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    for name in "ab":
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            x = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(x).save(root / "pictures" / name / f"{i}.png")
    made.save(root / "vae", "tiny")
    made.save(root / "other", "tiny", seed=1)
    return root


def settings(root):
    return {
        "data": {"name": "folder", "path": str(root / "pictures"), "size": 8, "held_out": 0.3},
        "codec": {"name": "autoencoder_kl", "path": str(root / "vae")},
        "model": {"name": "dit", "depth": 1, "width": 16, "heads": 2, "patch": 2},
    }


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_are_as_precise_as_the_networks_unless_set(root, precision, dtype):
    given = settings(root) | {"precision": {"compute": precision}}
    given["codec"] = {**given["codec"], **({} if dtype is None else {"dtype": dtype})}
    codec = build({**saved_run.TINY, **given}).codec
    z = jax.ShapeDtypeStruct((1, 1, 4, 4, 4), np.float32)
    found = "bf16" in str(jax.make_jaxpr(codec.decode)(codec.weights.abstract, z))
    assert found == ((dtype or precision) == "bfloat16")


def stepped(root, devices, mesh):
    """The loss and the change of the parameters by one step, with the program's text."""
    sgd = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "clip": None}
    config = {**saved_run.TINY, **settings(root), "optimizer": sgd, "mesh": {"preset": mesh}}
    config["schedule"] = {"name": "constant"}
    experiment = build(config)
    batches = experiment.batches()
    run = program(experiment, batches, jax.devices()[:devices])
    state = jax.jit(run.create, out_shardings=run.shardings)(jax.random.key(0))
    before = jax.device_get(state.params)
    batch = jax.device_put(next(batches), run.batch_sharding)
    batches.close()
    key = jax.device_put(jax.random.key(1), run.replicated)
    text = run.train_step.lower(state, batch, key).as_text()
    weights = place(experiment.frozen, run.mesh)["codec"]
    state, metrics = run.train_step(state, batch, key)
    change = jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), before)
    return float(metrics["loss"]), change, text, weights, state


@pytest.mark.slow
def test_weights_are_arguments_split_over_devices_that_agree_with_one(root):
    loss, change, text, weights, state = stepped(root, 1, "dp")
    large = max(map(len, re.findall(r'dense<"0x([0-9A-F]*)"', text)), default=0)
    assert large < 2**12  # hexadecimal digits of a constant
    main = text[text.index("@main(") :].split("->")[0]
    leaves = len(jax.tree.leaves((state, weights["network"]["encoder"])))
    assert main.count("%arg") >= leaves + 2  # what is donated, the weights, and the batch
    found, moved, _, placed, _ = stepped(root, 8, "fsdp")
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
    assert fingerprints(placed) == fingerprints(weights)
    assert found == pytest.approx(loss, rel=1e-5)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(change), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(np.abs(b).max(), 1e-3))


def test_a_run_is_known_by_its_weights_wherever_they_lie(root, tmp_path):
    shutil.copytree(root / "vae", tmp_path / "vae")
    given = {**settings(root), "codec": {"name": "autoencoder_kl", "path": str(tmp_path / "vae")}}
    experiment = saved_run.save(tmp_path / "run", **given)
    found = draw.load_experiment(str(tmp_path / "run"))
    assert found.shape == (1, 4, 4, 4)
    place(found.frozen, None)
    meta = identities(experiment.frozen, None)
    for name, path, refused in (("moved", root / "vae", False), ("other", root / "other", True)):
        config = plain(experiment.config)
        config["codec"]["path"] = str(path)
        now = identities(build(config).frozen, None)
        assert (now != meta) == refused, name
        again = Checkpoints(storage.workdir(tmp_path / "run"), config, 1, frozen=now)
        restored = {"params": jax.eval_shape(experiment.init, jax.random.key(0))}
        restored["ema"] = {"ema_10": restored["params"]}
        if refused:
            with pytest.raises(UserError, match="other frozen weights of the codec"):
                again.restore(restored)
        else:
            assert again.restore(restored) is not None
        again.close()
    shutil.copy(root / "other" / made.FILE, tmp_path / "vae" / made.FILE)
    with pytest.raises(UserError, match="not those that this run, or its data, were made with"):
        place(draw.load_experiment(str(tmp_path / "run")).frozen, None)
    shutil.rmtree(tmp_path / "vae")
    with pytest.raises(UserError, match="there is nothing at"):
        draw.load_experiment(str(tmp_path / "run"))


@pytest.mark.slow
def test_pictures_are_trained_on_resumed_sampled_edited_judged_and_preflighted(root, tmp_path):
    file, workdir = tmp_path / "config.py", tmp_path / "run"
    whole = {**saved_run.TINY, **settings(root), "steps": 2, "log": {"every": 1}}
    whole["schedule"] = {"name": "constant"}
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({whole!r})\n"
    )

    def run(module, *args):
        process = commands.start(module, *args)
        out, err = process.communicate(timeout=commands.HANGS)
        assert process.returncode == 0, err
        return out + err

    run("train", f"--config={file}", f"--workdir={workdir}")
    assert Image.open(workdir / "samples" / "step_0000002.png").size[0] >= 8
    said = run("train", f"--config={file}", f"--workdir={workdir}", "--config.steps=3")
    assert "going on from step 2" in said
    out = tmp_path / "samples.npz"
    run("sample", f"--workdir={workdir}", "--num=3", f"--out={out}", "--guidance=1")
    samples = np.load(out)["samples"]
    assert (samples.shape, samples.dtype) == ((3, 8, 8, 3), np.uint8)
    mask = np.zeros(samples.shape, bool)
    mask[:, :, :4] = True
    np.savez(tmp_path / "mask.npz", mask=mask)
    edit = f"--init={out}", f"--mask={tmp_path / 'mask.npz'}", "--guidance=1"
    run("sample", f"--workdir={workdir}", "--num=3", f"--out={tmp_path / 'edit.png'}", *edit)
    run("evaluate", f"--workdir={workdir}", "--num=4", "--guidance=1")
    figures = json.loads((workdir / "evaluation.json").read_text())["figures"]
    assert np.isfinite(figures["held_out_loss"])
    said = run("preflight", f"--config={file}", "--topology=cpu:8", "--mesh=fsdp")
    assert "parameters" in said
