"""From captioned pictures to samples of a prompt by the command line, in pixels and in latents."""

import json

import autoencoder_files
import numpy as np
import pytest
from commands import start
from PIL import Image

from dit.data.sources import shapes_text

pytestmark = pytest.mark.slow

SMALL = (
    *("--config.model.depth=1", "--config.model.width=24", "--config.text.width=16"),
    *("--config.text.depth=1", "--config.samples.every=0", "--config.samples.num=0"),
    *("--config.batch_size=8", "--config.steps=3", "--config.checkpoint.every=3"),
    *("--config.schedule.warmup=1", "--config.log.every=3"),
)


def run(module, *argv):
    process = start(module, *argv)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out + err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Drawn scenes with their captions."""
    root = tmp_path_factory.mktemp("pictures")
    train = shapes_text.build(size=32).train
    for i in range(60):
        example = train[i]
        Image.fromarray(example["x"][0]).save(root / f"{i:03}.png")
        (root / f"{i:03}.txt").write_text(example["caption"])
    return root


@pytest.mark.parametrize("latents", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_prepare_train_sample_and_evaluate(tmp_path, pictures, latents):
    out, workdir, data = tmp_path / "records", tmp_path / "run", ()
    argv = [f"--source={pictures}", "--size=32", f"--out={out}", "--held-out=0.2", "--workers=0"]
    if latents:
        autoencoder_files.save(tmp_path / "vae", "tiny")
        argv += [f"--codec=autoencoder_kl:path={tmp_path / 'vae'}", "--flip", "--batch=8"]
        data = ("--config.data.flip=true", "--config.codec.name=autoencoder_kl")
        data += (f"--config.codec.path={tmp_path / 'vae'}", "--config.model.patch=2")
    assert "records in 2 shards" in run("prepare", *argv)
    config = ("--config=configs/shapes_text.py", f"--config.data.path={out}", *data)
    run("train", *config, "--config.data.name=records", *SMALL, f"--workdir={workdir}")
    prompt = ("--prompt=two green stars", "--guidance=2", "--steps=2")
    run("sample", f"--workdir={workdir}", *prompt, f"--out={tmp_path / 'x.png'}")
    with Image.open(tmp_path / "x.png") as drawn:
        assert np.asarray(drawn).shape[-1] == 3
    if not latents:
        run("evaluate", f"--workdir={workdir}", "--num=8", "--steps=1", "--batch=8")
        assert json.loads((workdir / "evaluation.json").read_text())
