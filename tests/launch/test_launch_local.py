"""Several real processes on this machine, the first to fail among them, and signals to all."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from compiling import devices
from launch_tools import HANGS, LAUNCH, NASTY, dry, launch

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


COUNT = "--xla_force_host_platform_device_count"


@pytest.mark.parametrize(
    ("given", "args", "expected"),
    [
        ("", [], f"{COUNT}=1"),
        ("--a", ["--devices-per-process=3"], f"{COUNT}=1 --a {COUNT}=3"),
        (f"{COUNT}=4", [], f"{COUNT}=1 {COUNT}=4"),
        ("--a", ["--env=XLA_FLAGS=--b"], f"{COUNT}=1 --a --b"),
        ("--a", ["--gpus-per-process=1", "--env=XLA_FLAGS=--b"], "--a --b"),
    ],
)
def test_flags_of_the_compiler_that_are_there_come_last(given, args, expected):
    env = {"XLA_FLAGS": given}
    done = launch("local.py", "-n", "1", *args, "--", "bash", "-c", "echo $XLA_FLAGS", env=env)
    assert done.stdout == f"[0] {expected}\n"


def test_lines_of_processes_that_print_at_once_stay_whole():
    done = launch("local.py", "-n", "4", "--", "seq", "3000")
    lines = [line.split() for line in done.stdout.splitlines()]
    for number in range(4):
        mine = [rest for first, *rest in lines if first == f"[{number}]"]
        assert mine == [[str(i)] for i in range(1, 3001)]


@pytest.mark.parametrize("args", [[], ["--devices-per-process=3"], ["--gpus-per-process=2"]])
def test_a_dry_run_prints_what_is_run(args):
    options = ["-n", "2", "--port=4321", *args, "--env=A=b  'c'", "--", "env"]
    done = launch("local.py", *options)
    lines = dry("local.py", *options).splitlines()
    for number, line in enumerate(lines):
        shown = subprocess.check_output(["bash", "-c", line], text=True).splitlines()
        ran = [x[4:] for x in done.stdout.splitlines() if x.startswith(f"[{number}] ")]
        mine = ("DIT_", "XLA_", "JAX_", "CUDA_", "TQDM_", "A=")
        assert {x for x in ran if x.startswith(mine)} == {x for x in shown if x.startswith(mine)}


@pytest.mark.parametrize("word", NASTY.values(), ids=NASTY)
def test_any_argument_reaches_the_command_as_it_is(word):
    args = ["-n", "1", f"--env=WORD={word}", "--", "printf", "%s\\0", word, "end"]
    line = dry("local.py", *args)
    assert len(line.splitlines()) == 1
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode() == f"{word}\0end\0"
    show = [*args[:4], "bash", "-c", 'echo "${#WORD} ${#1}"', "x", word]
    size = len(word.encode())
    env = {"LC_ALL": "C"}
    assert launch("local.py", *show, env=env).stdout == f"[0] {size} {size}\n"


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
        f"sleep 9999 & sleep 9999; touch {tmp_path}/survived"
    )
    done = launch("local.py", "-n", "3", "--", "bash", "-c", script)
    assert done.returncode == 7
    assert "worker 1 was the first to fail, with status 7" in done.stderr
    assert "  line 50" in done.stderr
    assert "  line 20\n" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_named_with_its_signal():
    done = launch("local.py", "-n", "2", "--", "bash", "-c", "kill -9 $$")
    assert done.returncode == 137
    assert "by SIGKILL" in done.stderr


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name
)
def test_signals_go_on_to_all(sent, tmp_path):
    script = (
        f"trap 'echo saved; exit $DIT_STOPPED_STATUS' TERM INT; touch {tmp_path}/$DIT_PROCESS_ID; "
        "while true; do sleep 0.1; done"
    )
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "local.py"), "-n", "2", "--", "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, process)
    process.send_signal(sent)
    out, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 75
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]


SLOW = """
import os, signal, sys, time
sys.path.insert(0, {launch!r})
import local

class Slow(local.Worker):
    def __init__(self, number, *args):
        super().__init__(number, *args)
        while number == 1 and len(os.listdir({folder!r})) < 2:
            time.sleep(0.01)
        if number == 1:
            os.kill(os.getpid(), signal.{sent})

local.Worker = Slow
sys.exit(local.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_reaches_a_process_that_is_just_being_started(sent, tmp_path):
    """Between its start and its place in the launcher's list; it would run on for ever."""
    script = (
        f"trap 'echo saved; exit $DIT_STOPPED_STATUS' TERM INT; touch {tmp_path}/$DIT_PROCESS_ID; "
        "while true; do sleep 0.1; done"
    )
    code = SLOW.format(launch=str(LAUNCH), folder=str(tmp_path), sent=sent)
    command = [sys.executable, "-c", code, "-n", "2", "--", "bash", "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=HANGS)
    assert done.returncode == 75
    assert sorted(done.stdout.splitlines()) == ["[0] saved", "[1] saved"]


def start(*args):
    command = [sys.executable, str(LAUNCH / "local.py"), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(what, process):
    deadline = time.monotonic() + HANGS
    while not what():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_second_ctrl_c_kills_whoever_does_not_stop(tmp_path):
    script = f"trap 'touch {tmp_path}/got-$DIT_PROCESS_ID' TERM; trap '' INT; "
    script += f"sleep 9999 & echo $$ $! >{tmp_path}/$DIT_PROCESS_ID.new; "
    script += f"mv {tmp_path}/$DIT_PROCESS_ID.new {tmp_path}/$DIT_PROCESS_ID; "
    script += "while true; do sleep 0.1; done"
    process = start("-n", "2", "--", "bash", "-c", script)
    wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), process)
    for _ in range(2):  # schedulers send several, which change nothing
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: len(list(tmp_path.glob("got-*"))) == 2, process)
        for file in tmp_path.glob("got-*"):
            file.unlink()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=HANGS)
    assert process.returncode == 137
    pids = " ".join((tmp_path / name).read_text() for name in "01").split()
    assert all(map(gone, pids))


def test_a_stopped_run_tells_itself_from_a_finished_one():
    script = 'exit "$DIT_STOPPED_STATUS"'
    for env, status in (({}, 75), ({"DIT_STOPPED_STATUS": "17"}, 17)):
        env = {"DIT_STOPPED_STATUS": "", **env}
        assert launch("local.py", "--", "bash", "-c", script, env=env).returncode == status
    assert launch("local.py", "--", "true").returncode == 0


def test_a_program_that_is_not_there_is_one_line():
    done = launch("local.py", "--", "no-such-program")
    assert (done.returncode, done.stderr) == (127, "no-such-program was not found\n")


@pytest.mark.parametrize(
    "args",
    [["-n", "0", "--", "true"], ["-n", "2"], ["--devices-per-process=0", "--", "true"]],
    ids=["none", "no-command", "no-devices"],
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
    env = {**os.environ, "XLA_FLAGS": devices()}
    process = subprocess.Popen(
        [*run, "--config.steps=1000000"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 75, out
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
