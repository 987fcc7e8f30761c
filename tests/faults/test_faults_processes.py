"""Real processes on loopback that are killed, stopped, and made to fail: all end, and nothing is lost.

After every fault the run goes on, in the process of the tests, on a mesh of the same shape; it must come
to the state, bit for bit, and to the log of a run that nothing happened to.
"""

import os
import random
import re
import resource
import signal
import subprocess
import time

import jax
import pytest
import training_fake as fake
import training_tiny as tiny
from commands import HANGS, wait_for
from multihost_job import DP, ENDLESS, Job, rows

from dit.parallel.fingerprints import fingerprints
from dit.training import loop
from dit.training.checkpoint import steps

pytestmark = pytest.mark.slow
STEPS = {"steps": 20, "mesh": DP}
KILLS = 6
NAMES = ["process 0, the coordinator", "process 1"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Twenty steps in two processes without a fault: the digest of the state, and the log."""
    workdir = tmp_path_factory.mktemp("straight")
    outcome = Job(workdir, 2, config=STEPS).outcomes()
    return outcome["digest"], rows(workdir)


def train(workdir, config):
    """The state to which a run comes here, on two devices."""
    return loop.train(
        fake.Experiment(tiny, {**config, "log": {"every": 1}}),
        workdir,
        batches=tiny.batches(),
        devices=jax.devices()[:2],
        progress=False,
    ).state


@pytest.fixture
def go_on(straight):
    """``go_on(workdir)``: run again and compare; what there is to say of it."""

    def again(workdir):
        before = steps(workdir)[-1] if list(workdir.glob("checkpoints/*")) else 0
        assert fingerprints(train(workdir, STEPS)) == straight[0]
        assert rows(workdir) == straight[1]
        assert not list(workdir.glob("checkpoints/*tmp*"))
        return f"went on from step {before} to the same state"

    return again


def last_line(text):
    return [line for line in text.strip().splitlines() if line.strip()][-1]


def when(workdir, name):
    return float((workdir / name).read_text())


FAULTS = [("raise", 0), ("raise", 1), ("SIGKILL", 0), ("SIGSTOP", 1)]
FAULTS += [
    pytest.param(*case, marks=pytest.mark.exhaustive) for case in [("SIGKILL", 1), ("SIGSTOP", 0)]
]


@pytest.mark.parametrize(("fault", "who"), FAULTS)
def test_the_failure_of_one_process_ends_all(tmp_path, go_on, note, fault, who):
    job = Job(tmp_path, 2, odd={"at": 12, "fault": fault}, who=who, config=STEPS)
    job.processes[1 - who].wait(timeout=HANGS)
    took = time.time() - when(tmp_path, "failed")
    if fault == "SIGSTOP":
        job.processes[who].kill()
    status, errors = job.wait()
    assert status[1 - who] != 0
    said = last_line(errors[1 - who])
    if fault == "raise":
        assert status == [1, 1]
        named = re.compile(f"process {who} of 2 on .* failed: RuntimeError: the disk is on fire")
        for text in (*errors, (tmp_path / f"error-{who}.log").read_text()):
            assert named.search(text), text
        assert f"{1 - who} of 2 stops, because of the first error" in errors[1 - who]
        said = named.search(errors[1 - who])[0]
    what = "an exception" if fault == "raise" else fault
    note(what, NAMES[who], f"the other ended after {took:.0f} s: {said}; {go_on(tmp_path)}")


@pytest.mark.parametrize(
    ("place", "who"),
    [
        pytest.param("steady", 0, marks=pytest.mark.exhaustive),
        *[("steady", 1), ("compile", 0), ("draw", 1)],
    ],
)
def test_sigterm_to_any_process_saves_one_step_on_all(tmp_path, go_on, note, place, who):
    at = 12 if place == "steady" else place
    config = {**STEPS, "steps": ENDLESS, "samples": {"every": 11 if place == "draw" else 0}}
    odd = {"at": at, "fault": "SIGTERM"}
    env = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if place == "compile" else {}
    outcome = Job(tmp_path, 2, odd=odd, who=who, config=config, env=env).outcomes()
    assert outcome["stopped"] == "SIGTERM"
    low, high = {"steady": (9, 14), "compile": (0, 0), "draw": (11, 14)}[place]
    assert low <= outcome["step"] <= high
    saved = list(tmp_path.glob("checkpoints/[0-9]*"))
    assert steps(tmp_path)[-1] == outcome["step"] if outcome["step"] else not saved
    if place != "steady":
        assert when(tmp_path, "failed") < when(tmp_path, "left")  # it came in the midst
    names = {"steady": "in a step", "compile": "in compilation", "draw": "while samples are drawn"}
    said = f"both saved step {outcome['step']}" if saved else "both ended before step 1"
    said += " and exited with 0"
    note("SIGTERM", f"{names[place]}, to {NAMES[who]}", f"{said}; {go_on(tmp_path)}")


@pytest.mark.parametrize(
    ("count", "place"),
    [pytest.param(1, "commit", marks=pytest.mark.exhaustive), (2, "write"), (2, "commit")],
)
def test_sigkill_in_the_midst_of_saving(tmp_path, go_on, note, place, count):
    job = Job(
        tmp_path,
        count,
        devices=2 // count,
        odd={"at": place, "fault": "SIGKILL"},
        who=0,
        config=STEPS,
    )
    status, _ = job.wait()
    assert status[0] == -signal.SIGKILL
    assert list(tmp_path.glob("checkpoints/10.*"))  # it was under way
    assert steps(tmp_path) == [5]
    names = {"write": "during the write of a checkpoint", "commit": "before the rename of one"}
    note("SIGKILL", f"{names[place]}, {count} processes", go_on(tmp_path))


def test_a_process_that_stops_for_a_while_is_waited_for(tmp_path, straight, note):
    odd = {"at": 8, "fault": "SIGSTOP"}
    job = Job(tmp_path, 2, odd=odd, config=STEPS)
    wait_for((tmp_path / "failed").exists, job.processes[0])
    time.sleep(3)
    job.processes[1].send_signal(signal.SIGCONT)
    outcome = job.outcomes()
    assert outcome["step"] == 20
    assert outcome["digest"] == straight[0]
    note("SIGSTOP and SIGCONT", "3 s later, process 1", "the other waited; the same state")


def test_the_errors_of_an_older_run_mean_nothing(tmp_path, note):
    odd = {"at": 2, "fault": "raise"}
    assert 1 in Job(tmp_path, 2, odd=odd, config={"steps": 50, "mesh": DP}).wait()[0]
    assert list(tmp_path.glob("error-*"))
    again = Job(tmp_path, 2, config={"steps": 8, "mesh": DP})
    assert again.outcomes()["step"] == 8
    assert not list(tmp_path.glob("error-*"))
    note("an error file of an older run", "two processes", "it is removed, and nobody heeds it")


def test_only_one_job_may_hold_a_workdir(tmp_path, go_on, note):
    first = Job(tmp_path, 1, devices=2, config={**STEPS, "steps": ENDLESS}, wait=0.2)
    wait_for((tmp_path / "metrics.jsonl").exists, first.processes[0])
    status, errors = Job(tmp_path, 2, config=STEPS).wait()
    assert status == [1, 1]
    assert all("is in use by another job" in text for text in errors)
    first.processes[0].send_signal(signal.SIGTERM)
    assert first.outcomes()["stopped"] == "SIGTERM"
    note("a second job", "two processes, in a workdir in use", last_line(errors[0]))


def test_a_killed_loader_is_replaced(tmp_path, straight, note):
    job = Job(tmp_path, 1, devices=2, workers=2, at=12, fault="loader", config=STEPS)
    status, (error,) = job.wait()
    assert status == [0], error
    assert (tmp_path / "failed").exists()
    assert rows(tmp_path) == straight[1]
    note("SIGKILL", "a process that reads data, before batch 12", last_line(error))


def test_loaders_do_not_outlive_their_process(tmp_path, go_on, note):
    job = Job(tmp_path, 1, devices=2, workers=2, at=12, fault="SIGKILL", config=STEPS)
    children = set()
    while job.processes[0].poll() is None:
        children |= set(children_of(job.processes[0].pid))
        time.sleep(0.05)
    job.wait()
    deadline = time.monotonic() + HANGS
    while left := [pid for pid in children if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    note("SIGKILL", "a process that has loaders", f"they ended too; {go_on(tmp_path)}")


def children_of(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def read_rows(workdir):
    """How many lines of the log there are, and which file it is: each start makes a new one."""
    file = workdir / "metrics.jsonl"
    return (file.read_bytes().count(b"\n"), file.stat().st_ino) if file.exists() else (0, 0)


def test_random_kills_in_one_run(tmp_path, note):
    """One at any time from the start of the process, the others at random moments of training."""
    config = {"steps": ENDLESS, "mesh": DP, "checkpoint": {"every": 2}}
    workdir, rng, reached = tmp_path / "run", random.Random(0), []
    for kill in range(KILLS):
        before = read_rows(workdir)[1]
        job = Job(workdir, 1, devices=2, config=config, wait=0.02)
        (process,) = job.processes
        if kill:
            wait_for(lambda before=before: read_rows(workdir)[1] != before, process, every=0.01)
            lines = read_rows(workdir)[0]
            wait_for(lambda lines=lines: read_rows(workdir)[0] > lines, process, every=0.01)
            time.sleep(rng.uniform(0, 0.2))
        else:
            time.sleep(rng.uniform(0.5, 4))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        saved = [*workdir.glob("checkpoints/[0-9]"), *workdir.glob("checkpoints/[0-9][0-9]")]
        reached.append(max([int(place.name) for place in saved], default=0))
        assert reached == sorted(reached)  # nothing that was saved is lost
    config["steps"] = reached[-1] + 3
    state = train(workdir, config)
    assert fingerprints(state) == fingerprints(train(tmp_path / "straight", config))
    assert rows(workdir) == rows(tmp_path / "straight")
    went = ", ".join(map(str, reached))
    note(f"{KILLS} x SIGKILL", "random moments of one run", f"saved steps {went}; the same state")


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of its own, of 4 MiB; None where nothing can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_and_survived(tmp_path, note, small_disk):
    """A real one where this machine lets us mount one; or else files may not grow beyond a bound."""
    workdir = (small_disk or tmp_path) / "run"
    job = Job(workdir, 1, devices=2, config={**STEPS, "steps": ENDLESS}, wait=0.05)
    (process,) = job.processes
    wait_for(lambda: read_rows(workdir)[0] >= 7 and steps(workdir), process, every=0.01)
    if small_disk is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
    else:
        with open(small_disk / "filler", "wb", buffering=0) as file:
            while process.poll() is None:
                try:
                    file.write(bytes(4096))
                except OSError:
                    time.sleep(0.01)
    (status,), (error,) = job.wait()
    assert status == 2, error
    assert error.count("\nerror:") + error.startswith("error:") == 1
    assert "Traceback" not in error[error.rindex("error:") :]  # before it Orbax may say what it met
    assert steps(workdir)[-1] >= 5
    kept = steps(workdir)[-1]
    if small_disk is not None:
        (small_disk / "filler").unlink()
    where = "files bounded by the system" if small_disk is None else "a file system of 4 MiB"
    state = train(workdir, {**STEPS, "steps": kept + 3})
    straight = train(tmp_path / "straight", {**STEPS, "steps": kept + 3})
    assert fingerprints(state) == fingerprints(straight)
    note("a full disk", where, f"{last_line(error)}; with room again, the same state")
