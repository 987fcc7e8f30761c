"""Train on GKE: a JobSet of TPU slices or of GPU nodes, by kubectl or by xpk.

    python launch/gke.py run --name=dit --image=IMAGE --tpu=v5e --topology=16x16 \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=/mnt/shared/xl2
    python launch/gke.py run --name=dit --image=IMAGE --gpu=nvidia-h100-80gb --nodes=4 -- ...
    python launch/gke.py xpk --name=dit --image=IMAGE --tpu=v5e --topology=16x16 --cluster=C -- ...
    python launch/gke.py status|logs|delete --name=dit

``run`` applies a plain JobSet, which starts all pods again when one fails: after a preemption as often
as it takes, after an error ``--max-restarts`` times. ``logs`` shows the log of the pod that failed
first, or of the first pod. ``--dry-run`` prints the YAML, or the command, and does nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from typing import Any

import common
import flags
from yaml_text import yaml_text

ACCELERATORS = {  # the node label of each kind of chip
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
XPK_TYPES = {
    "v4": "v4-{cores}",
    "v5e": "v5litepod-{chips}",
    "v5p": "v5p-{cores}",
    "v6e": "v6e-{chips}",
}
JOB = "worker"
POD_FIELD = "metadata.annotations['jobset.sigs.k8s.io/{}']"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, and as ``command`` what comes after ``--``."""
    parser = argparse.ArgumentParser(
        prog="launch/gke.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=("run", "xpk", "status", "logs", "delete"))
    parser.add_argument("--name", required=True, help="of the JobSet: short, and fit for DNS")
    parser.add_argument("--image", help="with this package installed in it")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tpu", choices=ACCELERATORS)
    kind.add_argument("--gpu", help="GKE's name of the accelerator, such as nvidia-h100-80gb")
    parser.add_argument("--topology", help="of a TPU slice: 16x16, 4x4x4")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices")
    parser.add_argument("--nodes", type=int, default=1, help="GPU nodes")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--queue", help="Kueue's local queue, which starts all pods or none")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    parser.add_argument("--service-account", help="of the pods: it must reach the workdir")
    parser.add_argument("--claim", help="a PersistentVolumeClaim, mounted at /mnt/shared")
    parser.add_argument("--max-restarts", type=int, default=5, help="after errors")
    parser.add_argument(
        "--cache", default=flags.CACHE, help="compiled programs; gs:// outlives pods"
    )
    parser.add_argument("--cluster", help="of xpk")
    parser.add_argument("--dry-run", action="store_true", help="print, and do nothing")
    args, args.command = common.parse(parser, argv)
    if args.verb in ("run", "xpk"):
        if not args.command or not args.image or not (args.tpu or args.gpu):
            parser.error(f"{args.verb} needs --image, --tpu or --gpu, and a command after --")
        if args.tpu and not args.topology:
            parser.error("--tpu needs --topology")
    if args.verb == "xpk" and not (args.cluster and args.tpu):
        parser.error("xpk needs --cluster, and --tpu")
    return args


def chips_per_pod(args: argparse.Namespace) -> tuple[int, int]:
    """Chips of a TPU slice, and of each of its hosts: four, but for slices of a single host."""
    chips = math.prod(int(n) for n in args.topology.split("x"))
    single = {"v5e": 8, "v6e": 8}.get(args.tpu, 4)
    return chips, chips if chips <= single else 4


def jobset(args: argparse.Namespace) -> dict[str, Any]:
    """The JobSet (v1alpha2) as a tree."""
    if args.tpu:
        chips, each = chips_per_pod(args)
        jobs, pods, resource = args.slices, chips // each, {"google.com/tpu": each}
        nodes = {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[args.tpu],
            "cloud.google.com/gke-tpu-topology": args.topology,
        }
        env = []  # GKE tells the pods of a slice, and JAX reads it
    else:
        jobs, pods, resource = 1, args.nodes, {"nvidia.com/gpu": args.gpus_per_node}
        nodes = {"cloud.google.com/gke-accelerator": args.gpu}
        names = {"JOBSET_NAME": "jobset-name", "REPLICATED_JOB_NAME": "replicatedjob-name"}
        env = [
            {"name": k, "valueFrom": {"fieldRef": {"fieldPath": POD_FIELD.format(v)}}}
            for k, v in names.items()
        ]
        env.append({"name": "DIT_NUM_PROCESSES", "value": str(pods)})
    if args.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [
        {"name": "shm", "emptyDir": {"medium": "Memory"}}
    ]  # NCCL, and workers that read data
    if args.claim:
        mounts.append({"name": "shared", "mountPath": "/mnt/shared"})
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": args.claim}})
    pod = {
        "restartPolicy": "Never",  # the JobSet starts all of them again, or none
        "terminationGracePeriodSeconds": 120,  # SIGTERM saves first; a spot node has less
        "nodeSelector": nodes,
        "containers": [
            {
                "name": "dit",
                "image": args.image,
                "command": ["bash", "-c"],
                "args": [
                    f"{flags.shell(chip(args), args.cache)}\nexec {shlex.join(args.command)}\n"
                ],
                "terminationMessagePolicy": "FallbackToLogsOnError",  # the last lines, in the status
                "resources": {"requests": resource, "limits": resource},
                "volumeMounts": mounts,
                **({"env": env} if env else {}),
            }
        ],
        "volumes": volumes,
    }
    if args.service_account:
        pod["serviceAccountName"] = args.service_account
    if jobs > 1:  # slices talk through the network of their hosts
        pod.update({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"})
    # A preempted node, and a run that a signal stopped, fail the Job for the reason PodFailurePolicy;
    # an error fails it for another, and counts.
    stopped = {"containerName": "dit", "operator": "In", "values": [flags.STOPPED]}
    job = {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {"action": "FailJob", "onExitCodes": stopped},
            ]
        },
        "template": {"spec": pod},
    }
    preempted = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    metadata: dict[str, Any] = {"name": args.name, "namespace": args.namespace}
    if args.tpu:  # one Job a slice
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    if args.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": args.queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": args.max_restarts,
                "restartStrategy": "BlockingRecreate",  # never two runs in one workdir
                "rules": [preempted],
            },
            "replicatedJobs": [{"name": JOB, "replicas": jobs, "template": {"spec": job}}],
        },
    }


def chip(args: argparse.Namespace) -> str:
    return args.tpu or "gpu"


def xpk(args: argparse.Namespace) -> list[str]:
    """The xpk command that makes the same job."""
    chips, _ = chips_per_pod(args)
    kind = XPK_TYPES[args.tpu].format(chips=chips, cores=2 * chips)
    environment = flags.environment(args.tpu, args.cache)
    return [
        *("xpk", "workload", "create", f"--workload={args.name}", f"--cluster={args.cluster}"),
        *(f"--tpu-type={kind}", f"--num-slices={args.slices}", f"--docker-image={args.image}"),
        *(f"--max-restarts={args.max_restarts}", "--restart-on-user-code-failure"),
        *("--termination-grace-period-seconds=120", *(["--spot"] if args.spot else [])),
        *(f"--env={name}={text}" for name, text in environment.items()),
        f'--command=ulimit -n "$(ulimit -Hn)"; exec {shlex.join(args.command)}',
    ]


def first_failure(pods: list[dict[str, Any]]) -> tuple[str, str]:
    """The name of the pod that failed first, or else of the first pod, and what happened to it."""
    ends = []
    for pod in pods:
        name = pod["metadata"]["name"]
        for container in pod.get("status", {}).get("containerStatuses", []):
            end = container.get("state", {}).get("terminated")
            if end and end["exitCode"] not in (0, flags.STOPPED):
                ends.append((end.get("finishedAt", ""), name, f"status {end['exitCode']}"))
    if ends:
        when, name, how = min(ends)
        return name, f"was the first to fail, at {when}, with {how}"
    return min(pod["metadata"]["name"] for pod in pods), "is the first pod; none has failed"


def logs(args: argparse.Namespace, kubectl: list[str], show: list[str]) -> int:
    """Print the log of the first pod to fail."""
    if args.dry_run:
        print(shlex.join([*show, "--output=json"]))
        print(shlex.join([*kubectl, "logs", "POD", "--tail=100"]))
        return 0
    done = subprocess.run([*show, "--output=json"], stdout=subprocess.PIPE, text=True, check=False)
    pods = json.loads(done.stdout)["items"] if done.returncode == 0 else []
    if not pods:
        sys.exit(f"no pods of {args.name}")
    name, what = first_failure(pods)
    print(f"{name} {what}. Its log:", file=sys.stderr)
    return subprocess.run([*kubectl, "logs", name, "--tail=100"], check=False).returncode


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    kubectl = ["kubectl", f"--namespace={args.namespace}"]
    show = [*kubectl, "get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={args.name}"]
    text = None
    if args.verb == "run":
        command, text = [*kubectl, "apply", "--filename=-"], yaml_text(jobset(args))
    elif args.verb == "xpk":
        command = xpk(args)
    elif args.verb == "logs":
        return logs(args, kubectl, show)
    elif args.verb == "status":
        command = [*show, "--output=wide"]
    else:
        command = [*kubectl, "delete", "jobset", args.name]
    if args.dry_run:
        print(text if text is not None else shlex.join(command), end="" if text else "\n")
        return 0
    return subprocess.run(command, input=text, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
