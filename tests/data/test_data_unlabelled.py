"""Data without labels, from the source to the loss, the samples and the figures: no label anywhere."""

import json

import data_tfds
import jax
import numpy as np
import pytest
from PIL import Image

from dit import config, draw, evaluate, prepare, sample, train
from dit.data.pipeline import batches, eval_batches
from dit.diffusion.times import uniform
from dit.diffusion.weights import none
from dit.experiment import build
from dit.scaling.evaluate import Evaluator, freeze
from dit.types import UserError

RUN = {
    "seed": 0,
    "steps": 2,
    "batch_size": 8,
    "model": {"name": "dit", "depth": 1, "width": 16, "heads": 2, "patch": 4},
    "path": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "log": {"every": 1},
    "samples": {"every": 2, "num": 9, "solver": "euler", "steps": 2},
}


def pictures(root):
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    return {"path": str(root), "size": 8, "held_out": 0.3}


def latents(root):
    np.save(root / "latents.npy", np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype("f4"))
    return {"path": str(root), "held_out": 0.3}


def prepared(root):
    (root / "in").mkdir()
    pictures(root / "in")
    out = ("--size=8", "--held-out=0.3", "--workers=0", f"--out={root / 'out'}")
    prepare.main([f"--source={root / 'in'}", *out])
    return {"path": str(root / "out")}


UNLABELLED = {  # None: has labels always
    "digits": None,
    "moving_digits": None,
    "shapes": None,
    "shapes_text": lambda root: {"held_out": 20},
    "world": lambda root: {"frames": 2, "size": 16, "held_out": 20},
    "noise": lambda root: {"shape": (1, 8, 8, 3)},
    "mixture": lambda root: {
        "parts": tuple({"name": "noise", "shape": (1, 8, 8, 3), "seed": i} for i in range(2))
    },
    "emoji": lambda root: {"size": 8},
    "photographs": lambda root: {"size": 8, "overlap": False},
    "folder": pictures,
    "latents": latents,
    "records": prepared,
    "tfds": lambda root: {
        **data_tfds.prepare(root),
        **{"label": None, "image": "clear", "size": 8},
    },
}
CAN = [name for name, files in UNLABELLED.items() if files]


def test_every_source_says_whether_it_can_be_unlabelled():
    assert set(UNLABELLED) == set(config.names("data.sources"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """``data(name)``: the config's section of an unlabelled source; its files are made once."""
    made = {}

    def section(name):
        if name not in made:
            made[name] = {"name": name, **UNLABELLED[name](tmp_path_factory.mktemp(name))}
        return made[name]

    return section


@pytest.mark.parametrize("name", CAN)
def test_no_label_is_in_examples_or_batches(data, name):
    source = config.resolve("data.sources", **data(name))
    assert source.num_classes is None
    for split in (source.train, source.held_out):
        assert split[0].keys() - {"caption"} == {"x"}
        assert next(batches(split, batch_size=2, seed=0)).keys() == {"x", "id"}
        assert next(eval_batches(split, batch_size=2)).keys() == {"x", "id", "mask"}


def section(name, data):
    pixels = name in ("emoji", "photographs", "folder", "tfds", "shapes_text", "records", "world")
    codec = {"name": "pixel"} if pixels else {"name": "latent", "scale": 1.0}
    return {**RUN, "data": data(name), "codec": codec}


@pytest.mark.parametrize("name", CAN)
def test_the_loss_of_every_unlabelled_source_has_no_label(data, name):
    experiment = build(section(name, data))
    params = jax.eval_shape(experiment.init, jax.random.key(0))

    def loss(params, batch):
        batch = {**batch, "x": experiment.codec.encode({}, batch["x"])}
        key, process = jax.random.key(0), experiment.process
        return experiment.loss(key, params, experiment.apply_fn, process, batch)[0]

    assert "label" not in params
    batches = experiment.batches()
    assert jax.eval_shape(loss, params, next(batches)).shape == ()
    assert batches.look([0, 5]).keys() == {"x", "id"}
    frozen = freeze(experiment.source.held_out, examples=3, draws=8)
    assert frozen.label is None
    Evaluator(
        frozen,
        apply_fn=experiment.apply_fn,
        process=experiment.process,
        objective={"name": "denoise", "times": uniform.build(), "weight": none.build()},
        encode=experiment.codec.encode,
    ).check(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "latents"])
def test_unlabelled_data_train_sample_and_evaluate(data, name, tmp_path):
    whole = repr(section(name, data))
    (tmp_path / "c.py").write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({whole})\n"
    )
    workdir, out = tmp_path / "run", tmp_path / "out.npz"
    train.main([f"--config={tmp_path}/c.py", f"--workdir={workdir}"])
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)
    sample.main([f"--workdir={workdir}", f"--out={out}", "--num=5"])
    drawn = np.load(out)
    assert drawn.files == ["samples"]
    assert drawn["samples"].shape == (5, 8, 8, 3)
    with pytest.raises(UserError, match="without labels"):
        sample.main([f"--workdir={workdir}", f"--out={out}", "--labels=0"])
    if name == "folder":
        evaluate.main([f"--workdir={workdir}", "--num=8"])
        figures = json.loads((workdir / "evaluation.json").read_text())["figures"]
        assert "nearest_ratio" in figures
        assert not any("accuracy" in figure for figure in figures)
        assert Image.open(workdir / "samples" / "step_0000002.png").width < 4 * 80  # 3 by 3
    else:
        experiment, restored = draw.load(str(workdir))
        figures = evaluate.held_out_loss(experiment, restored.params)
    assert np.isfinite(figures["held_out_loss"])


def test_labels_and_the_model_have_to_agree(data):
    """What the model is built for follows from the data, and a stray label is refused."""
    experiment = build({**RUN, "data": data("noise"), "codec": {"name": "latent"}})
    assert experiment.num_classes is None
    params = jax.eval_shape(experiment.init, jax.random.key(0))
    batch = {**next(experiment.batches()), "label": np.zeros(8, np.int32)}

    def loss(params, batch):
        return experiment.loss(
            jax.random.key(0), params, experiment.apply_fn, experiment.process, batch
        )

    with pytest.raises(UserError, match=r"got Cond\.label"):
        jax.eval_shape(loss, params, batch)
