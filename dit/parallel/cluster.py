"""The processes of a job, from its environment. The first of these that is present counts.

1. ``DIT_COORDINATOR`` (``host:port`` of process 0), ``DIT_NUM_PROCESSES`` and ``DIT_PROCESS_ID``.
2. Slurm: a step of ``srun`` with more than one task.
3. A Kubernetes JobSet: ``JOBSET_NAME``, ``REPLICATED_JOB_NAME``, ``JOB_COMPLETION_INDEX`` and
   ``DIT_NUM_PROCESSES``, as ``launch/gke.py`` sets them; ``JOB_INDEX`` and ``DIT_PODS_PER_JOB`` where
   the set has several jobs.
4. A Cloud TPU pod: the variables that GKE sets, or the metadata of a TPU VM.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from dit.types import UserError

OURS = ("DIT_COORDINATOR", "DIT_NUM_PROCESSES", "DIT_PROCESS_ID")
JOBSET = ("JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_COMPLETION_INDEX", "DIT_NUM_PROCESSES")
JOBSET_PORT = 8476
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"

Metadata = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A job of several processes. ``arguments``: for ``jax.distributed.initialize``."""

    kind: str
    processes: int
    arguments: Mapping[str, Any]


def find(environ: Mapping[str, str], metadata: Metadata | None = None) -> Cluster | None:
    """The cluster that ``environ`` describes, or None for a single process.

    ``metadata(name)``: an attribute of this TPU VM, or None; by default asks the metadata server. Raises
    UserError for variables of which some are missing or have impossible values.
    """
    jobset = bool(environ.get("JOBSET_NAME"))  # which sets only DIT_NUM_PROCESSES
    if any(environ.get(name) for name in OURS if not (jobset and name == "DIT_NUM_PROCESSES")):
        return _ours(environ)
    if environ.get("SLURM_STEP_NODELIST"):
        return _slurm(environ)
    if jobset and not _tpu_hosts(environ):
        return _jobset(environ)
    return _tpu(environ, tpu_metadata if metadata is None else metadata)


def _ours(environ: Mapping[str, str]) -> Cluster | None:
    _all_set(environ, OURS, "give all of --coordinator, --processes and --process, or none")
    processes = _whole(environ, "DIT_NUM_PROCESSES", 1)
    return _explicit("flags", environ["DIT_COORDINATOR"], processes, _process(environ, processes))


def _explicit(kind: str, coordinator: str, processes: int, process: int) -> Cluster | None:
    host, colon, port = coordinator.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"got the coordinator {coordinator!r}; expected host:port of process 0")
    if processes == 1:
        return None
    arguments = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }
    if host in ("127.0.0.1", "localhost"):  # otherwise it listens on all interfaces
        arguments["coordinator_bind_address"] = coordinator
    return Cluster(kind, processes, arguments)


def _process(environ: Mapping[str, str], processes: int) -> int:
    process = _whole(environ, "DIT_PROCESS_ID", 0)
    if process >= processes:
        raise UserError(
            f"got process {process} of {processes} (DIT_PROCESS_ID, DIT_NUM_PROCESSES); expected a "
            f"number from 0 to {processes - 1}"
        )
    return process


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    processes = _whole(environ, "SLURM_NTASKS", 1) if environ.get("SLURM_NTASKS") else 1
    if processes == 1:
        return None
    names = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    _all_set(environ, names, "start the processes with srun, as launch/slurm.py does")
    arguments: dict[str, Any] = {"cluster_detection_method": "slurm"}
    # JAX gives each task the GPU of its local rank; a single task on a node should have them all.
    alone = re.fullmatch(r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if alone and gpus.isdecimal():
        arguments["local_device_ids"] = list(range(int(gpus)))
    return Cluster("Slurm", processes, arguments)


def _jobset(environ: Mapping[str, str]) -> Cluster | None:
    _all_set(environ, JOBSET, "set them in the pod's template, as launch/gke.py does")
    processes = _whole(environ, "DIT_NUM_PROCESSES", 1)
    job = _whole(environ, "JOB_INDEX", 0) if environ.get("JOB_INDEX") else 0
    pods = _whole(environ, "DIT_PODS_PER_JOB", 1) if job else processes
    process = job * pods + _whole(environ, "JOB_COMPLETION_INDEX", 0)
    process = _process({"DIT_PROCESS_ID": str(process)}, processes)
    name, replicated = environ["JOBSET_NAME"], environ["REPLICATED_JOB_NAME"]
    coordinator = f"{name}-{replicated}-0-0.{name}:{JOBSET_PORT}"  # the DNS name of the first pod
    return _explicit("JobSet", coordinator, processes, process)


def _tpu(environ: Mapping[str, str], metadata: Metadata) -> Cluster | None:
    hosts, slices = _tpu_hosts(environ), environ.get("MEGASCALE_NUM_SLICES")
    if not hosts:
        hosts = metadata("worker-network-endpoints")
        found = re.search(r"MEGASCALE_NUM_SLICES: '(\d+)'", metadata("tpu-env") or "")
        slices = found[1] if found else None
    processes = len(hosts.split(",")) * int(slices or 1) if hosts else 1
    return Cluster("TPU", processes, {}) if processes > 1 else None


def _tpu_hosts(environ: Mapping[str, str]) -> str | None:
    return environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")


def tpu_metadata(name: str) -> str | None:
    """An attribute of this Cloud TPU VM; None on any other machine, without a delay."""
    here = os.path.exists("/dev/accel0") or glob.glob("/dev/vfio/[0-9]*")
    skip = "TPU_SKIP_MDS_QUERY" in os.environ or importlib.util.find_spec("libtpu") is None
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    if not here or skip or "tpu" not in platforms.split(","):
        return None
    request = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return answer.read().decode()
    except OSError:  # a TPU that is no Cloud TPU VM, such as a notebook's
        return None


def _all_set(environ: Mapping[str, str], names: tuple[str, ...], advice: str) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        there = ", ".join(name for name in names if environ.get(name))
        raise UserError(f"{there} is set, but {', '.join(missing)} is not: {advice}")


def _whole(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ[name]
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"got {name}={text!r}; expected a whole number of at least {least}")
    return int(text)
