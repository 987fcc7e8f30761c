"""Several real processes on this machine, the first to fail among them, and signals to all."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from launch_tools import LAUNCH, dry, launch

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_a_dry_run_prints_a_command_a_process_and_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    out = dry(
        "local.py", "-n", "2", "--port=1234", "--devices-per-process=3", "--", "touch", str(trace)
    )
    first, second = out.splitlines()
    for line, number in ((first, 0), (second, 1)):
        assert line.startswith("env DIT_COORDINATOR=127.0.0.1:1234 DIT_NUM_PROCESSES=2 ")
        assert f"DIT_PROCESS_ID={number} " in line
        assert "device_count=3" in line
        assert line.endswith(f"touch {trace}")
    assert not trace.exists()


def test_gpus_are_shared_out():
    out = dry("local.py", "-n", "2", "--gpus-per-process=4", "--", "true").splitlines()
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7" in out[1]
    assert "JAX_PLATFORMS" not in out[1]


def test_each_process_knows_its_number_and_its_lines_say_so():
    script = "echo I am $DIT_PROCESS_ID of $DIT_NUM_PROCESSES at $DIT_COORDINATOR"
    done = launch("local.py", "-n", "2", "--port=4321", "--", "bash", "-c", script)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        "[0] I am 0 of 2 at 127.0.0.1:4321",
        "[1] I am 1 of 2 at 127.0.0.1:4321",
    ]


def test_when_one_fails_its_last_lines_are_shown_and_the_rest_end(tmp_path):
    script = (
        f'if [ "$DIT_PROCESS_ID" = 1 ]; then for i in $(seq 50); do echo "line $i"; done; exit 7; fi; '
        f"sleep 300 & sleep 300; touch {tmp_path}/survived"
    )
    start = time.monotonic()
    done = launch("local.py", "-n", "3", "--", "bash", "-c", script)
    assert done.returncode == 7
    assert time.monotonic() - start < 30
    assert "worker 1 was the first to fail, with status 7" in done.stderr
    assert "  line 50" in done.stderr
    assert "  line 20\n" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_named_with_its_signal():
    done = launch("local.py", "-n", "2", "--", "bash", "-c", "kill -9 $$")
    assert done.returncode == 137
    assert "by SIGKILL" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_signals_go_on_to_all(sent, tmp_path):
    script = (
        f"trap 'echo saved; exit 0' TERM INT; touch {tmp_path}/$DIT_PROCESS_ID; "
        "while true; do sleep 0.1; done"
    )
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "local.py"), "-n", "2", "--", "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    process.send_signal(sent)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]


@pytest.mark.parametrize(
    "args", [["-n", "0", "--", "true"], ["-n", "2"]], ids=["none", "no-command"]
)
def test_nonsense_is_refused(args):
    assert launch("local.py", *args).returncode == 2


@pytest.mark.slow
def test_training_runs_stops_as_one_and_goes_on(tmp_path):
    """``dit.train`` on two processes, through to the curve and the samples."""
    run = [sys.executable, str(LAUNCH / "local.py"), "-n", "2", "--"]
    run += [sys.executable, "-m", "dit.train", "--config=configs/digits.py"]
    run += ["--config.model.depth=1", "--config.model.width=16", "--config.model.heads=2"]
    run += ["--config.batch_size=16", "--config.schedule.name=constant", "--config.log.every=5"]
    run += ["--config.samples.every=0", "--config.samples.num=10", "--config.samples.steps=2"]
    run += [f"--workdir={tmp_path / 'run'}"]
    env = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.Popen(
        [*run, "--config.steps=1000000"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert out.count("SIGTERM: step ") == 1  # process 0 speaks for both
    (saved,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    done = subprocess.run(
        [*run, f"--config.steps={saved + 5}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"going on from step {saved}" in done.stdout
    assert (tmp_path / "run" / "curve.png").exists()
    assert (tmp_path / "run" / "samples" / f"step_{saved + 5:07d}.png").exists()
