"""``python -m dit.train`` itself, killed at random, stopped while it samples, and on a full disk."""

import os
import pathlib
import random
import subprocess
import sys
import time

import pytest
from multihost_job import rows

from dit.training.checkpoint import read_meta, steps

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
RUN = [
    *("-m", "dit.train", "--config=configs/digits.py", "--config.steps=40"),
    *("--config.model.depth=1", "--config.model.width=16", "--config.model.heads=2"),
    *("--config.batch_size=16", "--config.schedule.name=constant", "--config.log.every=1"),
    *("--config.checkpoint.every=2", "--config.samples.every=20", "--config.samples.num=10"),
    "--config.samples.steps=2",
]
KILLS = 10


def start(workdir, *more, prefix=()):
    return subprocess.Popen(
        [*prefix, sys.executable, *RUN, f"--workdir={workdir}", *more],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, status=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, err
    assert "Traceback" not in err
    return out, err


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


def digest(workdir):
    """Every bit of the state at the end, by its fingerprints."""
    meta = read_meta(workdir)
    assert meta["step"] == 40
    return {name: array["bits"] for name, array in meta["arrays"].items()}


def lines(workdir):
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Forty steps without a fault."""
    workdir = tmp_path_factory.mktemp("straight")
    finish(start(workdir))
    return digest(workdir), rows(workdir)


@pytest.fixture
def same(straight):
    """``same(workdir)``: the run there ended as the one without a fault did."""

    def check(workdir):
        assert digest(workdir) == straight[0]
        assert rows(workdir) == straight[1]
        return True

    return check


def test_ten_random_kills_in_one_run(tmp_path, same, note):
    """Nine at random moments of training, and one at any time from the start of the process."""
    rng, reached = random.Random(0), []
    for kill in range(KILLS):
        process = start(tmp_path)
        if kill:
            seen = lines(tmp_path)
            wait_for(lambda seen=seen: lines(tmp_path) != seen, process)
            time.sleep(rng.uniform(0, 0.15))
        else:
            time.sleep(rng.uniform(0.5, 5))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        reached.append(steps(tmp_path)[-1] if list(tmp_path.glob("checkpoints/[0-9]")) else 0)
        assert reached == sorted(reached)  # nothing that was saved is lost
    finish(start(tmp_path))
    assert same(tmp_path)
    went = ", ".join(map(str, reached))
    note(f"{KILLS} x SIGKILL", "random moments of one run", f"saved steps {went}; the same state")


def test_sigterm_while_samples_are_drawn(tmp_path, same, note):
    """The signal comes from within the sampler, in the midst of the run."""
    script = (
        "import os, runpy, signal, sys\n"
        "from dit import draw\n"
        "call = draw.Sampler.__call__\n"
        "def drawn(self, params):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return call(self, params)\n"
        "draw.Sampler.__call__ = drawn\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('dit.train', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "-c", script, *RUN[1:], f"--workdir={tmp_path}"]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "DIT_STOPPED_STATUS": "17"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 17, done.stderr
    assert "SIGTERM: step 20 is saved" in done.stdout
    assert (tmp_path / "samples" / "step_0000020.png").exists()  # the picture is finished
    finish(start(tmp_path))
    assert same(tmp_path)
    note("SIGTERM", "while samples are drawn, dit.train", done.stdout.strip())


@pytest.fixture
def small_disk(tmp_path):
    """``(directory, how to run there)`` on a file system of its own, of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield place
        subprocess.run(["umount", str(place)], check=True)
    else:
        yield None


def test_a_full_disk_is_told_and_survived(tmp_path, same, note, small_disk):
    """A real one where this machine lets us mount one; or else files may not grow beyond a bound."""
    if small_disk is None:
        workdir, where = tmp_path / "run", "files bounded by the system"
        process = start(workdir, prefix=["prlimit", "--fsize=20000"])
        _, err = finish(process, status=2)
    else:
        workdir, where = small_disk / "run", "a file system of 2 MiB"
        process = start(workdir)
        wait_for(lambda: lines(workdir) >= 8, process)
        filler = small_disk / "filler"
        with open(filler, "wb", buffering=0) as file:
            while process.poll() is None:
                try:
                    file.write(bytes(4096))
                except OSError:
                    time.sleep(0.01)
        _, err = finish(process, status=2)
        assert steps(workdir)[-1] >= 6
        filler.unlink()
    message = err.strip().splitlines()[-1]
    assert err.count("error:") == 1
    finish(start(workdir))
    assert same(workdir)
    note("a full disk", where, f"{message}; with room again, the same state")
