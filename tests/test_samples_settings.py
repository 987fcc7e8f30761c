"""Settings of ``samples`` that cannot work end a run before it begins, and leave no workdir."""

import jax
import pytest

from dit import evaluate, sample, train
from dit.types import UserError

TINY = {
    "steps": 2,
    "batch_size": 64,
    "model.depth": 1,
    "model.width": 32,
    "model.heads": 2,
    "schedule.warmup": 1,
    "log.every": 2,
    "samples.num": 2,
    "samples.steps": 2,
    "samples.every": 0,
    "checkpoint.every": 2,
}


def command(workdir, **given):
    options = {**TINY, **{k.replace("__", "."): v for k, v in given.items()}}
    return [
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]


NOISE = {"data__name": "noise", "data__shape": "(1,8,8,1)"}
WRONG = {
    "autoguidance": ({"samples__guidance": "autoguidance:scale=2"}, "needs a weaker model"),
    "a variance that is not learned": (
        {"samples__solver": "ddpm:variance=learned"},
        "a model without variance channels",
    ),
    "guidance without labels": ({**NOISE, "samples__guidance": 2.0}, "guidance"),
    "memory in an adaptive solver": (
        {"samples__solver": "diffrax_adaptive", "samples__guidance": "apg:scale=2"},
        "cannot carry the memory",
    ),
    "four channels": (
        {"data__name": "noise", "data__shape": "(1,8,8,4)", "samples__guidance": 1.0},
        "4 channels",
    ),
    "two channels": (
        {"data__name": "noise", "data__shape": "(1,8,8,2)", "samples__guidance": 1.0},
        "2 channels",
    ),
    "no solver": ({"samples__solver": "heune"}, "did you mean 'heun'"),
    "a keyword of no solver": ({"samples__solver": "heun:order=3"}, "unknown keyword 'order'"),
    "a value of no solver": ({"samples__solver": "ddim:eta=2"}, "got eta=2; expected a number"),
    "no spec": ({"samples__solver": "ddim:eta"}, "expected name or name:key=value"),
    "no grid": ({"samples__grid": "uniforme"}, "did you mean 'uniform'"),
    "a grid of another path": ({"samples__grid": "ddpm"}, "needs a path with integer timesteps"),
    "no guidance": ({"samples__guidance": "cfgg:scale=2"}, "did you mean 'cfg"),
    "guidance without its scale": ({"samples__guidance": "cfg"}, "missing 'scale'"),
    "guidance far too strong": ({"samples__guidance": "cfg:scale=1e9"}, "got scale="),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_sampler_that_cannot_work_ends_the_run_before_it_begins(what, tmp_path):
    given, message = WRONG[what]
    with pytest.raises(UserError, match=message) as error:
        train.main(command(tmp_path / "run", **given))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_drawing_and_judging_make_no_nans_on_the_device(tmp_path, capsys):
    """As under ``JAX_DEBUG_NANS=1``, which takes any for a fault."""
    run = tmp_path / "run"
    with jax.debug_nans(True):
        assert train.main(command(run, samples__guidance=2.0)) == 0
        sample.main([f"--workdir={run}", f"--out={tmp_path / 'x.png'}", "--num=2"])
        evaluate.main([f"--workdir={run}", "--num=20", "--steps=1", "--guidance=1"])
    assert (tmp_path / "x.png").exists()
    assert "held_out_loss" in capsys.readouterr().out
