"""Train, sample and evaluate as a person would, on a tiny model; and what happens to mistakes."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dit import evaluate, media, sample, train
from dit.draw import Recipe, Sampler, load, placed
from dit.parallel.mesh import mesh_of
from dit.types import UserError

ROOT = pathlib.Path(__file__).parent.parent
TINY = {
    "steps": 4,
    "batch_size": 16,
    "model.depth": 1,
    "model.width": 32,
    "model.heads": 2,
    "schedule.warmup": 1,
    "samples.every": 2,
    "samples.num": 10,
    "samples.steps": 3,
    "log.every": 1,
    "checkpoint.every": 2,
}


def train_arguments(workdir, **overrides):
    given = {**TINY, **overrides}
    return [
        f"--config={ROOT / 'configs/digits.py'}",
        f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in given.items()),
        "--config.mesh.data=8",
    ]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    train.main(train_arguments(out))
    return out


def draw(workdir, out, *extra):
    sample.main([f"--workdir={workdir}", f"--out={out}", "--labels=0,1,2", "--steps=3", *extra])
    return out


def test_training_leaves_everything_a_person_looks_for(workdir):
    for name in ("config.json", "metrics.jsonl", "curve.png", "checkpoints", "tensorboard"):
        assert (workdir / name).exists(), name
    pictures = sorted((workdir / "samples").glob("*.png"))
    assert [p.name for p in pictures] == ["step_0000002.png", "step_0000004.png"]
    assert media.read_recipe(pictures[-1])["checkpoint_step"] == 4


@pytest.mark.first
@pytest.mark.parametrize(
    "extra",
    [
        ["--solver=heun", "--guidance=3"],
        ["--solver=ddim:eta=0.5", "--grid=quadratic", "--guidance=interval:scale=2,low=0.1,high=2"],
        ["--solver=dpmpp_2m", "--guidance=apg:scale=3", "--batch=2", "--seed=5"],
    ],
)
def test_like_makes_the_same_picture_bit_for_bit(workdir, tmp_path, extra):
    first = draw(workdir, tmp_path / "a.png", *extra)
    again = tmp_path / "b.png"
    sample.main([f"--like={first}", f"--workdir={workdir}", f"--out={again}"])
    assert first.read_bytes() == again.read_bytes()
    assert np.asarray(Image.open(first)).std() > 0


def test_a_picture_says_how_it_was_made(workdir, tmp_path):
    recipe = media.read_recipe(draw(workdir, tmp_path / "a.png", "--solver=euler", "--guidance=2"))
    expected = {"labels": [0, 1, 2], "solver": "euler", "steps": 3, "guidance": "2", "seed": 0}
    assert {k: recipe[k] for k in expected} == expected
    assert recipe["nfe"] == 6
    assert recipe["checkpoint_step"] == 4
    assert recipe["ema"] == "ema_200"
    assert len(recipe["checkpoint_fingerprint"]) == 12


def test_a_sample_does_not_depend_on_the_batch(workdir, tmp_path):
    alone = np.load(draw(workdir, tmp_path / "a.npz", "--batch=1"))
    together = np.load(draw(workdir, tmp_path / "b.npz", "--batch=3"))
    assert alone["samples"].shape == (3, 8, 8, 1)
    assert alone["samples"].dtype == np.uint8
    np.testing.assert_array_equal(alone["labels"], [0, 1, 2])
    assert np.abs(alone["samples"].astype(int) - together["samples"]).max() <= 1


@pytest.mark.parametrize("mesh", [pytest.param("fsdp", marks=pytest.mark.slow), "data=4,tensor=2"])
def test_a_sample_does_not_depend_on_the_mesh(workdir, tmp_path, mesh):
    copied = np.load(draw(workdir, tmp_path / "a.npz"))["samples"]
    split = np.load(draw(workdir, tmp_path / "b.npz", f"--mesh={mesh}"))["samples"]
    assert np.abs(copied.astype(int) - split).max() <= 1


def test_every_device_makes_a_share(workdir):
    experiment, restored = load(str(workdir))
    sampler = Sampler(experiment, Recipe(labels=tuple(range(8)), steps=1, solver="euler"))
    batch = {"id": np.arange(8), "label": np.arange(8, dtype=np.int32)}

    def flops(params):
        mesh = mesh_of(params)
        lowered = sampler.jitted(mesh).lower(params, None, placed(batch, mesh))
        return lowered.compile().cost_analysis()["flops"]

    alone = flops(jax.device_put(restored.params, jax.devices()[0]))
    assert flops(restored.params) < 1.5 * alone / 8


def test_editing_keeps_what_the_mask_covers(workdir, tmp_path):
    start = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    mask = np.zeros((3, 8, 8, 1), bool)
    mask[:, :4] = True
    np.savez(tmp_path / "in.npz", samples=start)
    np.savez(tmp_path / "mask.npz", mask=mask)
    init = [f"--init={tmp_path / 'in.npz'}"]
    painted = np.load(draw(workdir, tmp_path / "a.npz", *init, f"--mask={tmp_path / 'mask.npz'}"))[
        "samples"
    ]
    np.testing.assert_array_equal(painted[mask], start[mask])
    assert (painted[~mask] != start[~mask]).mean() > 0.5
    near, far = (
        np.load(draw(workdir, tmp_path / "b.npz", *init, f"--strength={s}"))["samples"]
        for s in (0.34, 1.0)
    )
    distance = lambda x: np.abs(x.astype(float) - start).mean()  # noqa: E731
    assert distance(near) < distance(far)


def test_autoguidance_by_a_weaker_average(workdir, tmp_path):
    guided = draw(workdir, tmp_path / "a.npz", "--guidance=autoguidance:scale=2", "--weak=params")
    assert np.load(guided)["samples"].shape == (3, 8, 8, 1)
    with pytest.raises(UserError, match=r"give --guidance=autoguidance:scale=\.\.\. and --weak"):
        draw(workdir, tmp_path / "a.npz", "--guidance=autoguidance:scale=2")


def test_evaluation_prints_and_writes_figures_with_their_recipe(workdir, capsys):
    evaluate.main([f"--workdir={workdir}", "--num=20", "--steps=2"])
    report = json.loads((workdir / "evaluation.json").read_text())
    for name in ("accuracy", "accuracy_real", "frechet", "frechet_floor", "nearest", "nfe"):
        assert np.isfinite(report["figures"][name]), name
        assert name in capsys.readouterr().out or name != "accuracy"
    assert report["figures"]["samples"] == 20
    assert report["recipe"]["steps"] == 2
    assert 0 < report["figures"]["held_out_loss"] < 10


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--labels=3,10"], r"got label 10; expected numbers from 0 to 9"),
        (["--solver=hune"], r"no solvers 'hune': did you mean 'heun'"),
        (["--solver=ddim:etaa=1"], r"unknown keyword 'etaa': did you mean 'eta'"),
        (["--guidance=nan"], r"got scale=nan; expected a finite number"),
        (["--steps=0"], r"--steps: got '0'; expected a whole number in \[1,"),
        (["--batch=0"], r"--batch: got '0'; expected a whole number in \[1,"),
        (["--ema=ema_9"], r"no parameters 'ema_9' in"),
        (["--step=3"], r"no checkpoint at step 3 in .*; there are \[2, 4\]"),
        (["--out=grid.jpg"], r"expected it to end in \.png, \.gif, \.webp, \.mp4 or \.npz"),
        (["--out=grid.png", "--fps=8"], r"--fps is of no effect on 'grid\.png'"),
        (["--init=none.npz"], r"cannot read none\.npz"),
        (["--like=none.png"], r"no file 'none\.png'"),
        (["--config.steps=3"], r"--config\.steps belongs to dit\.train"),
        (["--colour=red"], r"unknown argument '--colour=red'"),
    ],
)
def test_mistakes_get_one_clear_message(workdir, tmp_path, extra, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        sample.main([f"--workdir={workdir}", "--labels=0", "--steps=1", *extra])
    assert not list(tmp_path.iterdir())


def test_a_picture_of_another_run_is_refused(workdir, tmp_path):
    picture = tmp_path / "a.png"
    recipe = media.read_recipe(draw(workdir, picture))
    media.save_png(
        picture, np.zeros((8, 8, 1), np.uint8), {**recipe, "checkpoint_fingerprint": "0"}
    )
    with pytest.raises(UserError, match=r"made from checkpoint 0 .* another run's"):
        sample.main([f"--like={picture}", f"--workdir={workdir}", f"--out={tmp_path / 'b.png'}"])


def test_the_command_line_exits_with_2_and_no_traceback(workdir, tmp_path):
    for module, arguments, message in [
        ("train", train_arguments(workdir, **{"optimizer.lr": 7}), "optimizer.lr"),
        ("train", train_arguments(tmp_path, **{"optimizer.lrr": 7}), "did you mean"),
        ("sample", [f"--workdir={tmp_path / 'none'}"], "no checkpoint in"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", f"dit.{module}", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error:") == 1
    assert (workdir / "checkpoints" / "4").exists()
