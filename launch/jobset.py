"""The JobSet of a run on GKE: a Job per TPU slice, or one for all GPU nodes, and its restarts."""

from __future__ import annotations

import argparse
import re
from typing import Any

import common
import flags
import networks
import pods
import slices

JOB = "worker"
CONTAINER = "dit"
SHARED = "/mnt/shared"  # of --claim
GRACE = 120  # seconds to save after SIGTERM; a spot node has less
POD_FIELD = "metadata.annotations['jobset.sigs.k8s.io/{}']"


def jobset(args: argparse.Namespace) -> dict[str, Any]:
    """The JobSet (v1alpha2) as nested dicts and lists."""
    if args.tpu:
        slice_ = slices.find(args.tpu, args.topology)
        jobs, completions = args.slices, slice_.hosts
        pod = tpu_pod(args, slice_)
    else:
        jobs, completions = 1, args.nodes
        pod = gpu_pod(args)
    pod = pods.join(base_pod(args), pod)
    for part in (network_pod(args), mounted(args), args.pod_spec):
        pod = pods.join(pod, part)
    metadata: dict[str, Any] = {"name": args.name, "namespace": args.namespace}
    if args.tpu:  # one Job per slice
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    if args.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": args.queue}
    job = job_of(pod, completions)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": failure_policy(args.max_restarts),
            "replicatedJobs": [{"name": JOB, "replicas": jobs, "template": {"spec": job}}],
        },
    }


def chip(args: argparse.Namespace) -> str:
    return args.tpu or "gpu"


def lines(args: argparse.Namespace) -> list[str]:
    """The lines of bash that a worker runs."""
    network = networks.gke_lines(args.network)
    shell = flags.shell(chip(args), args.cache, network, args.env)
    return [*shell, f"exec {common.join(args.command)}"]


def escaped(text: str) -> str:
    """Escape text for Kubernetes, which replaces ``$(NAME)``, and ``$$`` by ``$``."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def base_pod(args: argparse.Namespace) -> dict[str, Any]:
    """The part that all pods have."""
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    # Shared memory, for NCCL and the processes that read data.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if args.claim:
        mounts.append({"name": "shared", "mountPath": SHARED})
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": args.claim}})
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # the JobSet restarts all of them or none
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": {"cloud.google.com/gke-spot": "true"} if args.spot else {},
        "containers": [
            {
                "name": CONTAINER,
                "image": args.image,
                "command": ["bash", "-c"],
                "args": [escaped("\n".join(lines(args)) + "\n")],
                "terminationMessagePolicy": "FallbackToLogsOnError",  # last lines, in the status
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    return {"spec": spec}


def _container(resource: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    resources = {"requests": {resource: count}, "limits": {resource: count}}
    return [{"name": CONTAINER, "resources": resources, **fields}]


def tpu_pod(args: argparse.Namespace, slice_: slices.Slice) -> dict[str, Any]:
    """The part for pods of a TPU slice. GKE tells them about each other, in a form that JAX reads."""
    spec: dict[str, Any] = {
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": slices.FAMILIES[args.tpu].label,
            "cloud.google.com/gke-tpu-topology": args.topology,
        },
        "containers": _container("google.com/tpu", slice_.per_host),
    }
    if args.slices > 1:  # slices communicate over their hosts' network
        spec.update({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"})
    return {"spec": spec}


def gpu_pod(args: argparse.Namespace) -> dict[str, Any]:
    """The part for pods on GPU nodes: the variables that ``dit.parallel.cluster`` reads."""
    names = {"JOBSET_NAME": "jobset-name", "REPLICATED_JOB_NAME": "replicatedjob-name"}
    env: list[dict[str, Any]] = [
        {"name": k, "valueFrom": {"fieldRef": {"fieldPath": POD_FIELD.format(v)}}}
        for k, v in names.items()
    ]
    env.append({"name": "DIT_NUM_PROCESSES", "value": str(args.nodes)})
    return {
        "spec": {
            "nodeSelector": {"cloud.google.com/gke-accelerator": args.gpu},
            "containers": _container("nvidia.com/gpu", args.gpus_per_node, env=env),
        }
    }


def network_pod(args: argparse.Namespace) -> dict[str, Any]:
    return networks.gke_pod(args.network, args.network_names)


def mounted(args: argparse.Namespace) -> dict[str, Any]:
    """The buckets of ``--mount``, through GKE's driver for Cloud Storage FUSE."""
    if not args.mount:
        return {}
    mounts, volumes = [], []
    for i, one in enumerate(args.mount):
        options = "implicit-dirs" + (f",only-dir={one.prefix}" if one.prefix else "")
        driver = {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {"bucketName": one.bucket, "mountOptions": options},
        }
        mounts.append({"name": f"bucket-{i}", "mountPath": one.path})
        volumes.append({"name": f"bucket-{i}", "csi": driver})
    return {
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
        "spec": {
            "containers": [{"name": CONTAINER, "volumeMounts": mounts}],
            "volumes": volumes,
        },
    }


def job_of(pod: dict[str, Any], completions: int) -> dict[str, Any]:
    """The Job of these pods. ``failure_policy`` depends on how it fails."""

    def status(number: int) -> dict[str, Any]:
        codes = {"containerName": CONTAINER, "operator": "In", "values": [number]}
        return {"action": "FailJob", "onExitCodes": codes}

    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    return {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": completions,
        "parallelism": completions,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": disrupted},
                status(flags.STOPPED),
                status(flags.FAILED),
            ]
        },
        "template": {key: pod[key] for key in ("metadata", "spec") if key in pod},
    }


def failure_policy(max_restarts: int) -> dict[str, Any]:
    """Bad input ends the JobSet, preemptions and signals never do, and other errors are counted."""
    reason = ["PodFailurePolicy"]
    return {
        "maxRestarts": max_restarts,
        "restartStrategy": "BlockingRecreate",  # so that no two runs share a workdir
        "rules": [
            {
                "name": "failed",
                "action": "FailJobSet",
                "onJobFailureReasons": reason,
                "onJobFailureMessagePatterns": [f"with exit code {flags.FAILED} matching"],
            },
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": reason,
            },
        ],
    }
