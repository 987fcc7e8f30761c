"""What an environment says of the job that a process belongs to."""

import pytest

from dit.parallel import cluster
from dit.types import UserError

FLAGS = {"DIT_COORDINATOR": "10.0.0.1:1234", "DIT_NUM_PROCESSES": "4", "DIT_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
JOBSET = {
    "JOBSET_NAME": "dit",
    "REPLICATED_JOB_NAME": "worker",
    "JOB_COMPLETION_INDEX": "2",
    "DIT_NUM_PROCESSES": "4",
}
HOSTS = {"TPU_WORKER_HOSTNAMES": "a,b"}


def find(environ, metadata=None):
    return cluster.find(environ, lambda name: (metadata or {}).get(name))


def test_an_ordinary_machine_is_a_single_process():
    assert find({}) is None


def test_our_flags_go_first():
    found = find({**SLURM, **JOBSET, **HOSTS, **FLAGS})
    assert (found.kind, found.processes) == ("flags", 4)
    assert found.arguments == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


def test_one_process_needs_no_others():
    one = {"DIT_NUM_PROCESSES": "1", "DIT_PROCESS_ID": "0"}
    assert find({**FLAGS, **one}) is None
    assert find({**SLURM, "SLURM_NTASKS": "1"}) is None
    assert find({**JOBSET, "DIT_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"}) is None
    assert find({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert find({}, {"worker-network-endpoints": "me"}) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_on_loopback_nobody_else_is_listened_to(host):
    found = find({**FLAGS, "DIT_COORDINATOR": f"{host}:1234"})
    assert found.arguments["coordinator_bind_address"] == f"{host}:1234"


def test_a_batch_script_of_slurm_is_not_a_step():
    assert find({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("tasks", "devices"), [("1(x2)", list(range(8))), ("1", list(range(8))), ("8(x2)", None)]
)
def test_the_only_task_of_a_node_has_all_its_gpus(tasks, devices):
    found = find({**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": "8"})
    assert found.arguments.get("local_device_ids") == devices
    assert found.arguments["cluster_detection_method"] == "slurm"


def test_a_jobset_meets_at_its_first_pod():
    found = find(JOBSET)
    assert (found.kind, found.processes) == ("JobSet", 4)
    assert found.arguments["coordinator_address"] == "dit-worker-0-0.dit:8476"
    assert found.arguments["process_id"] == 2
    second = find(
        {**JOBSET, "JOB_INDEX": "1", "DIT_PODS_PER_JOB": "2", "JOB_COMPLETION_INDEX": "1"}
    )
    assert second.arguments["process_id"] == 3


def test_tpu_pods_are_left_to_jax():
    assert find({**JOBSET, **HOSTS}).kind == "TPU"  # a JobSet on TPUs
    assert find({**HOSTS, "MEGASCALE_NUM_SLICES": "3"}).processes == 6
    slices = {
        "worker-network-endpoints": "x:0:a,x:1:b",
        "tpu-env": "A: 'b'\nMEGASCALE_NUM_SLICES: '2'",
    }
    found = find({}, slices)
    assert (found.kind, found.processes, dict(found.arguments)) == ("TPU", 4, {})


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"DIT_COORDINATOR": "a:1"}, "DIT_NUM_PROCESSES, DIT_PROCESS_ID is not"),
        ({"DIT_NUM_PROCESSES": "2"}, "DIT_COORDINATOR, DIT_PROCESS_ID is not"),
        ({**FLAGS, "DIT_COORDINATOR": "here"}, "expected host:port"),
        ({**FLAGS, "DIT_COORDINATOR": "here:http"}, "expected host:port"),
        ({**FLAGS, "DIT_COORDINATOR": "here:70000"}, "expected host:port"),
        ({**FLAGS, "DIT_PROCESS_ID": "4"}, "expected a number from 0 to 3"),
        ({**FLAGS, "DIT_PROCESS_ID": "-1"}, "got DIT_PROCESS_ID='-1'"),
        ({**FLAGS, "DIT_NUM_PROCESSES": "0"}, "at least 1"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not"),
        ({k: v for k, v in JOBSET.items() if k != "DIT_NUM_PROCESSES"}, "DIT_NUM_PROCESSES is not"),
        ({k: v for k, v in JOBSET.items() if k != "JOB_COMPLETION_INDEX"}, "INDEX is not"),
        ({**JOBSET, "JOB_COMPLETION_INDEX": "4"}, "expected a number from 0 to 3"),
    ],
)
def test_what_is_set_in_part_or_wrongly_is_refused(environ, says):
    with pytest.raises(UserError, match=says):
        find(environ)
