"""What ``dit.sample`` and ``dit.evaluate`` are given: checked before work, and kept with the picture."""

import shutil

import numpy as np
import pytest
from commands import free_port, start
from PIL import Image
from saved_run import save

from dit import evaluate, media, sample
from dit.types import UserError

NOISE = {"name": "noise", "shape": (1, 4, 4, 1), "num_classes": 3}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    out = tmp_path_factory.mktemp("saved") / "run"
    save(out, NOISE)
    return out


@pytest.fixture
def idle(monkeypatch):
    """No parameters are read, let alone used."""

    def fail(*args, **kwargs):
        raise AssertionError("work began")

    for module in (sample, evaluate):
        monkeypatch.setattr(module, "load_params", fail)


def draw(workdir, out, *extra):
    sample.main([f"--workdir={workdir}", f"--out={out}", *extra])
    return out


@pytest.fixture
def inputs(tmp_path):
    """The options for an edit, and one of each that looks like it and is another."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", samples=rng.integers(0, 256, (3, 4, 4, 1), np.uint8))
        np.savez(tmp_path / f"mask_{name}.npz", mask=rng.random((3, 4, 4, 1)) < 0.5)
    return {
        kind: {
            "init": f"--init={tmp_path / f'{kind}.npz'}",
            "mask": f"--mask={tmp_path / f'mask_{kind}.npz'}",
        }
        for kind in ("a", "b")
    }


@pytest.mark.slow
def test_samples_need_no_data_and_judging_says_which(tmp_path):
    """A run keeps what its model must know of the data; the folder itself may be gone."""
    rng, images = np.random.default_rng(0), tmp_path / "images"
    for name in ("x", "y"):
        (images / name).mkdir(parents=True)
        for i in range(4):
            picture = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(picture).save(images / name / f"{i}.png")
    made = save(
        tmp_path / "run", {"name": "folder", "path": str(images), "size": 8, "held_out": 0.25}
    )
    assert made.num_classes == 2
    shutil.rmtree(images)
    out = draw(tmp_path / "run", tmp_path / "out.npz", "--labels=0,1,1")
    assert np.load(out)["samples"].shape == (3, 8, 8, 3)
    with pytest.raises(UserError, match=r"no folder .*images"):
        evaluate.main([f"--workdir={tmp_path / 'run'}", "--num=4"])
    for i in range(4):  # another folder under the same name
        (images / "z").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(images / "z" / f"{i}.png")
    with pytest.raises(UserError, match="the data have changed"):
        evaluate.main([f"--workdir={tmp_path / 'run'}", "--num=4"])


def test_an_edit_like_another_needs_what_it_began_with(workdir, tmp_path, inputs):
    a, b = inputs["a"], inputs["b"]
    options = ("--labels=0,1,2", "--strength=0.6")
    first = draw(workdir, tmp_path / "first.png", *options, *a.values())
    like, out = f"--like={first}", tmp_path / "again.png"
    for given in ([], [a["init"]], [b["init"], a["mask"]], [a["init"], b["mask"]]):
        with pytest.raises(UserError, match=r"was made with --(init|mask), of digest"):
            draw(workdir, out, like, *given)
        assert not out.exists()
    assert draw(workdir, out, like, *a.values()).read_bytes() == first.read_bytes()
    plain = draw(workdir, tmp_path / "plain.png", "--labels=0,1,2")
    assert media.read_recipe(plain)["inputs"] == {}


def test_a_weak_model_is_a_part_of_the_recipe(workdir, tmp_path, monkeypatch):
    guided = ("--guidance=autoguidance:scale=2", "--weak=params", "--labels=0,1")
    first = draw(workdir, tmp_path / "first.png", *guided)
    out = tmp_path / "again.png"
    assert draw(workdir, out, f"--like={first}").read_bytes() == first.read_bytes()
    with pytest.raises(UserError, match="was made with --weak"):
        draw(workdir, out, f"--like={first}", "--weak=ema_10")
    draw(workdir, out, f"--like={first}", "--guidance=1")  # which needs none
    assert "weak" not in media.read_recipe(out)  # as in the pictures of training


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--num=0"], "--num: got '0'; expected a whole number in"),
        (["--num=-3"], "--num: got '-3'; expected a whole number in"),
        (["--num=100000000000"], "--num: got '100000000000'; expected a whole number in"),
        (["--steps=0"], "--steps: got '0'; expected a whole number in"),
        (["--steps=10000000"], "steps=10000000"),
        (["--batch=0"], "--batch: got '0'; expected a whole number in"),
        (["--seed=-1"], "--seed: got '-1'; expected a whole number in"),
        (["--seed=4294967296"], "--seed: got '4294967296'; expected a whole number in"),
        (
            ["--seed=9223372036854775808"],
            "--seed: got '9223372036854775808'; expected a whole number",
        ),
        (["--solver=hune"], "no solvers 'hune'"),
        (["--guidance=nan"], "got scale=nan"),
        (["--guidance=interval:scale=2", "--solver=diffrax_adaptive"], "adaptive solver"),
    ],
)
@pytest.mark.parametrize("command", [sample, evaluate])
def test_absurd_requests_are_refused_before_anything_is_read(tmp_path, command, extra, message):
    with pytest.raises(UserError, match=message):
        command.main([f"--workdir={tmp_path / 'none'}", *extra])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--strength=0.5"], "--strength is of no effect without --init"),
        (["--mask=m.npz"], "--mask is of no effect without --init"),
        (["--num=3", "--labels=0"], "both --labels and --num"),
        (["--strength=2", "--init=x.npz"], r"--strength: got '2'; expected a number in \(0, 1\]"),
    ],
)
def test_options_without_effect_are_refused_before_anything_is_read(tmp_path, extra, message):
    with pytest.raises(UserError, match=message):
        sample.main([f"--workdir={tmp_path / 'none'}", *extra])


def test_weak_models_and_autoguidance_belong_together(workdir, tmp_path, idle):
    for extra in (
        ["--weak=params"],
        ["--guidance=autoguidance:scale=2"],
        ["--weak=params", "--guidance=3"],
    ):
        with pytest.raises(UserError, match="and --weak=NAME together"):
            draw(workdir, tmp_path / "x.png", *extra)


@pytest.mark.parametrize("name", ["x.jpg", "folder.png", "file/x.png", "/proc/x.npz"])
def test_no_work_for_a_picture_that_cannot_be_written(workdir, tmp_path, idle, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"end in|is a directory|cannot write"):
        draw(workdir, tmp_path / name)


@pytest.mark.parametrize("name", ["x.txt", "folder.json", "file/x.json", "/proc/x.json"])
def test_no_work_for_figures_that_cannot_be_written(workdir, tmp_path, idle, name):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"end in|is a directory|cannot write"):
        evaluate.main([f"--workdir={workdir}", f"--out={tmp_path / name}"])


def test_no_work_for_what_cannot_be_drawn(tmp_path, idle):
    for name, data, codec in (
        ("latents", {**NOISE, "shape": (1, 4, 4, 4)}, {"name": "latent"}),
        ("channels", {**NOISE, "shape": (1, 4, 4, 4)}, {"name": "pixel"}),
    ):
        save(tmp_path / name, data, codec=codec)
        for suffix in ("png", "gif"):
            with pytest.raises(UserError, match=r"\.npz"):
                draw(tmp_path / name, tmp_path / f"x.{suffix}")
    with pytest.raises(UserError, match="this model makes latents"):
        evaluate.main([f"--workdir={tmp_path / 'latents'}"])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 4, 2), bool), "expected"),
        (np.full((3, 4, 4, 1), 255, np.uint8), "other than 0 and 1"),
        (np.full((3, 4, 4, 1), 0.5), "other than 0 and 1"),
        (np.full((3, 4, 4, 1), np.nan), "not finite"),
        (np.zeros((2, 4, 4, 1), bool), r"got a mask of shape \(2,"),
    ],
)
def test_masks_are_truth_values_of_the_right_shape(workdir, tmp_path, inputs, idle, array, message):
    np.savez(tmp_path / "m.npz", mask=array)
    with pytest.raises(UserError, match=message):
        draw(
            workdir,
            tmp_path / "x.png",
            "--labels=0,1,2",
            inputs["a"]["init"],
            f"--mask={tmp_path / 'm.npz'}",
        )


def test_files_that_are_not_ours_are_refused(workdir, tmp_path, inputs, idle):
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (4, 4)).save(tmp_path / "alien.png")
    for extra in (
        [f"--init={tmp_path / 'cut.npz'}"],
        [f"--like={tmp_path / 'alien.png'}"],
        [f"--like={tmp_path}"],
    ):
        with pytest.raises(UserError, match=r"cannot read|no recipe|not a PNG"):
            draw(workdir, tmp_path / "x.png", *extra)


@pytest.mark.slow
def test_two_processes_draw_the_picture_of_one(tmp_path):
    """And one of them writes it; both judge the same samples. Each holds a half of the parameters."""
    save(tmp_path / "run", {"name": "digits"})
    options = (f"--workdir={tmp_path / 'run'}", "--batch=4", "--mesh=fsdp")
    alone = draw(tmp_path / "run", tmp_path / "alone.npz", "--batch=4", "--num=10")
    for command, extra, said_once in (
        ("sample", ("--num=10", f"--out={tmp_path / 'both.npz'}"), "samples in"),
        ("evaluate", ("--num=10", f"--out={tmp_path / 'both.json'}"), "written to"),
    ):
        port = free_port()
        processes = [
            start(
                command,
                *options,
                *extra,
                f"--coordinator=127.0.0.1:{port}",
                "--processes=2",
                f"--process={i}",
            )
            for i in range(2)
        ]
        said = [p.communicate(timeout=900) for p in processes]
        assert [p.returncode for p in processes] == [0, 0], said
        assert said_once in said[0][0]
        assert said_once not in said[1][0]
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("alone", "both"))
    assert np.abs(one["samples"].astype(int) - two["samples"]).max() <= 1
    np.testing.assert_array_equal(one["labels"], two["labels"])
    assert alone.exists()
    assert (tmp_path / "both.json").exists()
