"""Runs whose workdir is in a bucket: as those in a directory, bit for bit, also after faults."""

import dataclasses
import signal
import time

import jax
import numpy as np
import pytest
import training_fake as fake
import training_tiny as tiny
from commands import HANGS, SMALL, free_port, start, wait_for

from dit import media, storage
from dit.storage import lease
from dit.training import checkpoint as checkpoints
from dit.training import loop
from dit.training.logging import TIMING, read_metrics
from dit.training.workdir import read_config
from dit.types import OutsideError


def train(workdir, **changes):
    return loop.train(
        fake.Experiment(tiny, {"log": {"every": 1}, **changes}),
        workdir,
        batches=tiny.batches(),
        devices=jax.devices()[:1],
        progress=False,
    )


def rows(workdir):
    return [{k: v for k, v in r.items() if k not in TIMING} for r in read_metrics(workdir)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Twenty steps in a directory, without a stop."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, jax.device_get(train(workdir).state)


@pytest.fixture(scope="module")
def half(server):
    """What ten steps leave in a bucket."""
    server.objects.clear()
    assert train("gs://bucket/run", steps=10).step == 10
    return {key: dataclasses.replace(o) for key, o in server.objects.items()}


@pytest.fixture
def run(server, half):
    server.objects.clear()
    server.objects.update({key: dataclasses.replace(o) for key, o in half.items()})
    return storage.place("gs://bucket/run")


def go_on(straight, run):
    """Train to the end: the state and the log of a run that nothing happened to."""
    workdir, state = straight
    assert tiny.trees_equal(jax.device_get(train(run).state), state)
    assert rows(run) == rows(workdir)


def test_ten_and_ten_steps_in_a_bucket_are_twenty_in_a_directory(straight, run):
    assert checkpoints.steps(run) == [5, 10]
    go_on(straight, run)
    assert checkpoints.steps("gs://bucket/run") == [10, 15, 20]  # rotated
    assert read_config(run) == read_config(straight[0])
    assert [p.name for p in run.glob("*")] == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
    ]
    boards = (run / "tensorboard").glob("events*")
    assert len(boards) == 2
    assert all(b.stat().st_size > 1000 for b in boards)


def test_parameters_are_read_from_a_bucket(straight, run):
    state = jax.eval_shape(tiny.init_params, jax.random.key(0))
    here = checkpoints.restore_params(straight[0], state, step=10)
    there = checkpoints.restore_params("gs://bucket/run", state)
    assert (there.step, there.which, there.fingerprint) == (10, here.which, here.fingerprint)
    assert tiny.trees_equal(here.params, there.params)


def objects(server, folder):
    prefix = f"run/checkpoints/{folder}"
    return [(key, o) for key, o in server.objects.items() if key[1].startswith(prefix)]


def flip(server):
    for key, stored in objects(server, "10/"):
        if "/d/" in key[1]:
            middle = len(stored.data) // 2
            stored.data = (
                stored.data[:middle] + bytes([stored.data[middle] ^ 16]) + stored.data[middle + 1 :]
            )


def lose_arrays(server):
    for key, _ in objects(server, "10/"):
        if "/d/" in key[1]:
            del server.objects[key]


def lose_meta(server):
    for key, _ in objects(server, "10/meta/"):
        del server.objects[key]


@pytest.mark.first
@pytest.mark.parametrize("damage", [flip, lose_arrays, lose_meta], ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_set_aside(straight, server, run, damage):
    damage(server)
    go_on(straight, run)
    assert [p.name for p in (run / "damaged").glob("*")] == ["10-0"]
    assert (run / "damaged/10-0/reason.txt").read_text().strip()
    assert checkpoints.steps(run) == [10, 15, 20]


def test_a_checkpoint_that_was_not_finished_is_none(straight, server, run):
    del server.objects["bucket", "run/checkpoints/10/commit_success.txt"]
    assert checkpoints.steps(run) == [5]
    go_on(straight, run)
    assert not (run / "damaged").exists()


def test_a_bucket_that_does_not_answer_is_no_damage(server, run, monkeypatch):
    lose_meta(server)

    def check(_):
        raise storage.StorageError("gs://bucket cannot be reached")

    monkeypatch.setattr(storage, "check", check)
    with pytest.raises(storage.StorageError):
        train(run)
    assert checkpoints.steps(run) == [5, 10]


def test_a_second_job_is_refused_and_a_job_that_lost_its_place_saves_nothing(
    server, run, monkeypatch
):
    for name, seconds in (("BEAT", 0.1), ("LOOK", 0.05)):
        monkeypatch.setattr(lease, name, seconds)
    with (
        lease.hold(run / ".lock"),
        pytest.raises(OutsideError, match=r"gs://bucket/run is in use by another job \(process"),
    ):
        train(run)
    save = checkpoints.Checkpoints.save

    def save_and_lose(self, step, *args):
        save(self, step, *args)
        (run / ".lock").write_text("another's")
        time.sleep(0.5)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_lose)
    with pytest.raises(OutsideError, match="another one has taken gs://bucket/run"):
        train(run)
    assert checkpoints.steps(run) == [5, 10, 15]
    assert (run / ".lock").read_bytes() == b"another's"


# The commands


@pytest.mark.slow
def test_the_commands_take_a_bucket(server, bucket):
    run = bucket / "runs" / "one"
    here = [*SMALL, f"--workdir={run}"]
    process = start("train", *here, "--config.steps=1000000", "--config.checkpoint.every=20")
    wait_for(lambda: len(read_metrics(run)) >= 2, process)
    second = start("train", *here, "--config.steps=1000000")
    _, err = second.communicate(timeout=HANGS)
    assert second.returncode == 1, err
    assert f"{run} is in use by another job (process {process.pid} on " in err
    assert "Traceback" not in err
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    saved = checkpoints.steps(run)[-1]
    assert f"SIGTERM: step {saved} is saved in {run}; the same command goes on" in out
    assert not (run / ".lock").exists()
    process = start("train", *here, f"--config.steps={saved + 5}")
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert f"going on from step {saved}" in err + out
    steps = [row["step"] for row in read_metrics(run)]
    assert steps == sorted(set(steps))
    assert steps[-1] == saved + 5
    assert (run / "curve.png").stat().st_size > 1000
    picture = run / "samples" / f"step_{saved + 5:07d}.png"
    assert media.read_recipe(picture)["checkpoint_step"] == saved + 5

    made = start("sample", f"--workdir={run}", f"--out={run / 'b.png'}", f"--like={picture}")
    _, err = made.communicate(timeout=HANGS)
    assert made.returncode == 0, err
    assert (run / "b.png").read_bytes() == picture.read_bytes()
    made = start("evaluate", f"--workdir={run}", "--num=20", "--steps=2")
    _, err = made.communicate(timeout=HANGS)
    assert made.returncode == 0, err
    assert "held_out_loss" in (run / "evaluation.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_two_processes_share_a_bucket(server, bucket, wrong):
    run = bucket / "two"
    port, jobs = free_port(), []
    for i in range(2):
        odd = ["--config.optimizer.lr=0.5"] if wrong and i else []
        ends = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}"]
        more = ["--config.steps=10", "--config.checkpoint.every=5", f"--workdir={run}"]
        jobs.append(start("train", *SMALL, *more, *ends, *odd))
    errors = [job.communicate(timeout=HANGS)[1] for job in jobs]
    status = [job.returncode for job in jobs]
    if not wrong:
        assert status == [0, 0], errors
        assert checkpoints.steps(run) == [5, 10]
        assert run.glob("error-*.log") == []
        return
    assert 0 not in status
    assert any("is not the same on all 2 processes" in text for text in errors)
    told = [file.read_text() for file in run.glob("error-*.log")]
    assert told
    assert all("is not the same" in text for text in told)


@pytest.mark.slow
def test_a_killed_run_goes_on(server, bucket):
    run = bucket / "killed"
    here = [*SMALL, f"--workdir={run}", "--config.checkpoint.every=10"]
    process = start("train", *here, "--config.steps=1000000")
    wait_for(lambda: (run / "checkpoints/20/commit_success.txt").exists(), process)
    process.kill()
    process.communicate()
    saved = checkpoints.steps(run)[-1]
    logged = {row["step"] for row in read_metrics(run)}
    assert set(range(5, saved + 1, 5)) <= logged  # no checkpoint without its rows
    sooner = "from dit.storage import lease; lease.LEASE = 3.0"
    process = start("train", *here, f"--config.steps={saved + 5}", before=sooner)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert "taking its place" in err
    losses = np.array([row["loss"] for row in read_metrics(run)])
    assert len(losses) == (saved + 5) // 5
