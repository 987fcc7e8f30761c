"""``python -m dit.train`` as a person runs it: stopped, resumed, finished, and misused."""

import json
import signal

import commands
import pytest
from commands import HANGS, SMALL, wait_for

from dit import media, train
from dit.types import UserError


def start(workdir, *more):
    return commands.start("train", *SMALL, f"--workdir={workdir}", *more)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, sent):
    workdir = tmp_path / "run"
    process = start(workdir, "--config.steps=1000000")
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert sent.name in out
    assert "the same command goes on" in out
    (saved,) = (int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert f"step {saved}" in out
    if sent == signal.SIGTERM:
        return
    process = start(workdir, f"--config.steps={saved + 5}")
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert f"going on from step {saved}" in err + out
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == saved + 5
    assert (workdir / "curve.png").stat().st_size > 1000
    recipe = media.read_recipe(workdir / "samples" / f"step_{saved + 5:07d}.png")
    assert recipe["checkpoint_step"] == saved + 5
    assert len(recipe["checkpoint_fingerprint"]) == 12


@pytest.mark.slow  # the loop's own tests cover it too
def test_a_run_that_diverges_exits_with_one_message(tmp_path):
    process = start(tmp_path / "run", "--config.steps=50", "--config.optimizer.lr=1e12")
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "is not finite after 10 batches that were skipped; that update was not made" in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizr.lr=1.0", "did you mean 'optimizer.lr'"),
        ("--config.optimizer.name=adamv", "did you mean 'adam"),
        ("--config.optimizer.lr=nan", "finite"),
        ("--config.batch_size=0", "batch_size"),
        ("--config.mesh.fsdp=7", "devices"),
        ("--config.ema.half_lives=(0.0,)", "half_lives"),
    ],
)
def test_bad_overrides_are_one_message(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train.main([*SMALL, f"--workdir={tmp_path / 'run'}", "--config.steps=1", override])
    assert not (tmp_path / "run").exists()


def test_another_kind_of_address_is_refused_before_a_directory_of_that_name_is_made():
    with pytest.raises(UserError, match="mount other storage"):
        train.main([*SMALL, "--workdir=s3://bucket/run"])
