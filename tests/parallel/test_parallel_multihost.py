"""Real processes on loopback: the same losses on any number, and resumed on any number.

What happens when one of them fails or is stopped is tested in ``tests/faults``.
"""

import json
import subprocess

import numpy as np
import pytest
from multihost_job import DP, Job

from dit.parallel import multihost
from dit.training.checkpoint import steps
from dit.training.logging import read_metrics

GRID = {"data": 2, "fsdp": 2}
pytestmark = pytest.mark.slow


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


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The state after twelve steps on the two processes of ``two``."""
    workdir = tmp_path_factory.mktemp("straight")
    job = Job(workdir, 2, devices=2, config={"steps": 12, "mesh": GRID})
    return job.outcomes()["digest"]


@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [
        pytest.param(2, 1, DP, id="2"),
        pytest.param(
            *(4, 1, {"data": 2, "tensor": 2}),
            id="4-half-the-rows-twice",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(2, 2, {"tensor": 2}, id="2-tensor"),
    ],
)
def test_losses_do_not_depend_on_the_processes(alone, tmp_path, count, devices, mesh):
    mesh = {"data": -1, "fsdp": 1, **mesh}
    Job(tmp_path, count, devices=devices, config={"steps": 6, "mesh": mesh}).outcomes()
    np.testing.assert_allclose(losses(tmp_path), alone[:6], rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "devices"), [pytest.param(1, 4, marks=pytest.mark.exhaustive), (4, 1)]
)
def test_two_processes_resume_on_another_number(alone, two, straight, tmp_path, count, devices):
    """The losses are those of one device; on as many devices the state is the same, bit for bit."""
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", two, workdir], check=True)
    job = Job(workdir, count, devices=devices, config={"steps": 12, "mesh": GRID})
    changed = job.outcomes()
    np.testing.assert_allclose(losses(workdir), alone, rtol=1e-5)
    assert steps(workdir)[-1] == 12
    if count == 4:  # collectives within a process add up in another order
        assert changed["digest"] == straight


def test_examples_of_several_shapes_go_on_on_another_number_of_processes(tmp_path):
    """In the middle of an epoch of each; the losses are those of a single process."""
    for workdir, count, last in (("one", 1, 12), ("many", 2, 7), ("many", 1, 12)):
        given = {"mixed": True, "config": {"steps": last, "mesh": DP}}
        Job(tmp_path / workdir, count, **given).outcomes()
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-5)


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


def test_a_workdir_that_is_not_shared_ends_all_by_name(tmp_path):
    """Each process has a directory of its own under the same name, as hosts have without a share."""
    odd = {"elsewhere": str(tmp_path / "two")}
    job = Job(tmp_path / "one", 2, odd=odd, seconds=2, config={"steps": 6})
    status, errors = job.wait()
    assert status == [2, 2]
    assert multihost.SHARED_SECONDS < 60  # but for the test
    for text in errors:
        assert "is not one directory for all processes: process 1 on" in text
        assert "Traceback" not in text
    assert not list(tmp_path.glob("*/checkpoints"))
    assert not list(tmp_path.glob("*/.job-*"))


def test_a_workdir_that_process_0_cannot_make_ends_all(tmp_path):
    (tmp_path / "file").write_text("x")
    where = str(tmp_path / "file" / "run")
    status, errors = Job(tmp_path, 2, elsewhere=where, config={"steps": 6}).wait()
    assert status == [2, 2]
    assert all("process 0 cannot write in" in text for text in errors)


@pytest.mark.parametrize("blind", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_damage_that_one_process_sees_is_damage_for_all(two, tmp_path, blind):
    """The newest step cannot be read by one process; both go on from the one before."""
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", two, workdir], check=True)
    odd = {"unreadable": 10}
    job = Job(workdir, 2, devices=2, odd=odd, who=blind, config={"steps": 12, "mesh": GRID})
    assert job.outcomes()["step"] == 12
    assert (workdir / "damaged" / "10-0").is_dir()
    assert steps(workdir)[0] == 5
    reason = (workdir / "damaged" / "10-0" / "reason.txt").read_text()
    assert "cannot be read" in reason if blind == 0 else "process 1 on" in reason
    assert [row["step"] for row in read_metrics(workdir)] == list(range(1, 13))
