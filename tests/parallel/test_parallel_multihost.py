"""Real processes on loopback: the same losses on any number, resumed on any number, stopped as one."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dit.training.checkpoint import steps
from dit.training.logging import read_metrics

WORKER = pathlib.Path(__file__).parent / "multihost_worker.py"
DP, GRID = {"data": -1, "fsdp": 1}, {"data": 2, "fsdp": 2}
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Job:
    """``count`` processes with ``devices`` each; ``odd`` is what process ``who`` is given besides."""

    def __init__(self, workdir, count, *, devices=1, odd=None, who=-1, **given):
        workdir.mkdir(exist_ok=True)
        self.workdir, self.processes, port = workdir, [], free_port()
        given["config"] = {"log": {"every": 1}, **given.get("config", {})}
        odd = {**given, **(odd or {})}
        odd["config"] = {**given["config"], **odd["config"]}
        for i in range(count):
            mine = odd if i == who % count else given
            env = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "DIT_COORDINATOR": f"127.0.0.1:{port}",
                "DIT_NUM_PROCESSES": str(count),
                "DIT_PROCESS_ID": str(i),
            }
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), str(workdir), json.dumps(mine)],
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait(self, seconds=240):
        """The exit status and stderr of each."""
        deadline = time.monotonic() + seconds
        try:
            errors = [
                p.communicate(timeout=max(1, deadline - time.monotonic()))[1]
                for p in self.processes
            ]
        finally:
            for p in self.processes:
                p.kill()
        return [p.returncode for p in self.processes], errors

    def outcomes(self):
        """What each process said at its end, which must be the same."""
        status, errors = self.wait()
        assert set(status) == {0}, errors
        files = [self.workdir / f"outcome-{i}.json" for i in range(len(self.processes))]
        first, *others = [json.loads(f.read_text()) for f in files]
        assert all(other == first for other in others)
        return first


def losses(workdir):
    return [row["loss"] for row in read_metrics(workdir)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Twelve steps in one process on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    Job(workdir, 1, config={"steps": 12, "mesh": DP}).outcomes()
    return losses(workdir)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Ten of the twelve steps on two processes of two devices, in a 2 x 2 mesh; a save at step 5."""
    workdir = tmp_path_factory.mktemp("two")
    Job(workdir, 2, devices=2, config={"steps": 10, "mesh": GRID}).outcomes()
    return workdir


@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [(2, 1, DP), (4, 1, DP), (4, 1, {"data": 2, "tensor": 2}), (2, 2, {"tensor": 2})],
    ids=["2", "4", "4-half-the-rows-twice", "2-tensor"],
)
def test_losses_do_not_depend_on_the_processes(alone, tmp_path, count, devices, mesh):
    mesh = {"data": -1, "fsdp": 1, **mesh}
    Job(tmp_path, count, devices=devices, config={"steps": 6, "mesh": mesh}).outcomes()
    np.testing.assert_allclose(losses(tmp_path), alone[:6], rtol=1e-5)


@pytest.mark.parametrize(("count", "devices"), [(1, 4), (4, 1)])
def test_two_processes_resume_on_another_number(alone, two, tmp_path, count, devices):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", two, workdir], check=True)
    Job(workdir, count, devices=devices, config={"steps": 12, "mesh": GRID}).outcomes()
    np.testing.assert_allclose(losses(workdir), alone, rtol=1e-5)
    assert steps(workdir)[-1] == 12


def test_the_final_state_is_that_of_a_run_that_never_changed_its_processes(two, tmp_path):
    """From 2 processes x 2 devices to 4 x 1 on the same mesh, bit for bit."""
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", two, workdir], check=True)
    changed = Job(workdir, 4, config={"steps": 12, "mesh": GRID}).outcomes()
    straight = Job(tmp_path / "straight", 2, devices=2, config={"steps": 12, "mesh": GRID})
    assert straight.outcomes()["digest"] == changed["digest"]


@pytest.mark.parametrize("who", [0, 1], ids=["coordinator", "other"])
@pytest.mark.parametrize("fault", ["raise", "SIGKILL", "SIGSTOP"])
def test_the_failure_of_one_process_ends_all_within_half_a_minute(tmp_path, fault, who):
    job = Job(
        tmp_path, 2, odd={"at": 6, "fault": fault}, who=who, config={"steps": 1_000_000, "mesh": DP}
    )
    left = job.processes[1 - who]
    left.wait(timeout=240)
    assert time.time() - float((tmp_path / "failed").read_text()) < 30
    if fault == "SIGSTOP":
        job.processes[who].kill()
    status, errors = job.wait()
    assert status[1 - who] != 0
    if fault == "raise":
        assert status == [1, 1]
        named = re.compile(f"process {who} of 2 on .* failed: RuntimeError: the disk is on fire")
        for text in (*errors, (tmp_path / f"error-{who}.log").read_text()):
            assert named.search(text), text
        assert f"{1 - who} of 2 stops, because of the first error" in errors[1 - who]


def test_the_errors_of_an_older_run_mean_nothing(tmp_path):
    odd = {"at": 2, "fault": "raise"}
    assert 1 in Job(tmp_path, 2, odd=odd, config={"steps": 50, "mesh": DP}).wait()[0]
    assert list(tmp_path.glob("error-*"))
    again = Job(tmp_path, 2, config={"steps": 8, "mesh": DP})
    assert again.outcomes()["step"] == 8
    assert not list(tmp_path.glob("error-*"))


def test_all_set_a_damaged_checkpoint_aside_and_take_the_one_before(two, tmp_path):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", two, workdir], check=True)
    state = workdir / "checkpoints" / "10" / "state"
    largest = max(state.rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    broken = bytearray(largest.read_bytes())
    broken[len(broken) // 2] ^= 1
    largest.write_bytes(broken)
    outcome = Job(workdir, 2, devices=2, config={"steps": 12, "mesh": GRID}).outcomes()
    assert outcome["step"] == 12
    assert [f.name for f in (workdir / "damaged").iterdir()] == ["10-0"]
    assert steps(workdir) == [5, 10, 12]


def test_sigterm_to_any_process_saves_one_step_on_all(tmp_path):
    odd = {"at": 12, "fault": "SIGTERM"}
    job = Job(tmp_path, 2, odd=odd, config={"steps": 1_000_000, "mesh": DP})
    outcome = job.outcomes()
    assert outcome["stopped"] == "SIGTERM"
    assert 9 <= outcome["step"] <= 14
    assert steps(tmp_path)[-1] == outcome["step"]


def test_what_one_process_says_all_hear_so_many_calls_later(tmp_path):
    job = Job(tmp_path, 2, odd={"says": [0, 15, 0, 2, 0]}, says=[0, 0, 9, 0, 0])
    status, errors = job.wait()
    assert set(status) == {0}, errors
    for i in range(2):
        assert json.loads((tmp_path / f"heard-{i}.json").read_text()) == [0, 0, 0, 15, 9]


def test_a_process_with_another_config_is_named(tmp_path):
    odd = {"config": {"optimizer": {"lr": 2e-2}}}
    status, errors = Job(tmp_path, 2, odd=odd).wait()
    assert status == [2, 2]
    for text in errors:
        assert "the config is not the same on all 2 processes: process 1" in text
    assert not list(tmp_path.glob("checkpoints"))


def test_only_one_job_may_hold_a_workdir(tmp_path):
    slow = {"at": -1, "fault": "none", "wait": 0.2}
    first = Job(tmp_path, 1, config={"steps": 1_000_000, "mesh": DP}, **slow)
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.2)
    status, errors = Job(tmp_path, 2, config={"steps": 5, "mesh": DP}).wait()
    assert status == [2, 2]
    assert all("is in use by another job" in text for text in errors)
    first.processes[0].send_signal(signal.SIGTERM)
    assert first.outcomes()["stopped"] == "SIGTERM"
