"""Train on GKE: a JobSet of TPU slices or of GPU nodes, by kubectl or by xpk.

    python launch/gke.py run --name=dit --image=IMAGE --tpu=v5e --topology=16x16 \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=gs://BUCKET/xl2
    python launch/gke.py run --name=dit --image=IMAGE --gpu=nvidia-h100-mega-80gb --nodes=4 \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=gs://BUCKET/xl2
    python launch/gke.py xpk --name=dit --image=IMAGE --tpu=v5e --topology=16x16 --cluster=C \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=gs://BUCKET/xl2
    python launch/gke.py status|logs|delete --name=dit

``run`` applies a plain JobSet, which restarts all pods when one fails: after a preemption or a signal
without limit, after an error ``--max-restarts`` times, and never after bad input or a diverged run
(status 2). ``xpk`` counts preemptions too. ``logs`` shows the log of the pod that failed first, or of
the first pod. ``--pod-spec`` adds anything else to the pods. ``--dry-run`` prints the command and its
input, and does nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import common
import flags
import networks
import pods
import slices
from jobset import CONTAINER, GRACE, SHARED, escaped, jobset, lines
from yaml_text import yaml_text

RESTARTS = {"run": 10, "xpk": 100}  # for xpk, which counts preemptions and so needs many more
KINDS = ("auto", "none", *networks.NAMES)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed options; ``command`` is what follows ``--``."""
    parser = argparse.ArgumentParser(
        prog="launch/gke.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add, more = parser.add_argument, {"action": "append", "default": [], "metavar": "FLAG"}
    add("verb", choices=("run", "xpk", "status", "logs", "delete"))
    add("--name", required=True, type=common.dns_name(40), help="of the JobSet")
    add("--image", help="with this package installed in it: see launch/Dockerfile")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tpu", choices=slices.FAMILIES)
    kind.add_argument("--gpu", help="GKE's name of the accelerator, such as nvidia-h100-mega-80gb")
    add("--topology", help="of a TPU slice: 16x16, 4x4x4")
    add("--slices", type=int, default=1, help="TPU slices")
    add("--nodes", type=int, default=1, help="GPU nodes")
    add("--gpus-per-node", type=int, default=8)
    add("--network", choices=KINDS, default="auto", help="of GPU nodes; by default their usual one")
    add("--network-names", help="of the cluster's Network objects, the default one first: a,b,c")
    add("--namespace", default="default", type=common.dns_name(63))
    add("--queue", help="Kueue's local queue, which starts all pods or none")
    add("--spot", action="store_true", help="on spot nodes")
    add("--service-account", help="of the pods: it must reach the workdir")
    add("--claim", help=f"a PersistentVolumeClaim, mounted at {SHARED}")
    common.add_mount(parser)
    add("--pod-spec", metavar="FILE", help="YAML or JSON: a Pod in part, joined with each pod")
    add("--max-restarts", type=int, help=f"after errors; by default {RESTARTS['run']}")
    add("--cache", help="directory of compiled programs; gs:// outlives pods")
    add("--kubectl-flag", **more, help="for every kubectl, such as --context=C; repeat it for more")
    add("--cluster", help="of xpk")
    add("--xpk-flag", **more, help="for xpk, such as --reservation=R; repeat it for more")
    common.add_shared(parser)
    args, args.command = common.parse(parser, argv)
    if args.verb in RESTARTS:
        check(parser, args)
    elif args.command:
        parser.error(f"{args.verb} takes no command")
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error for bad options; fill in those that depend on others."""
    if not args.command or not args.image or not (args.tpu or args.gpu):
        parser.error(f"{args.verb} needs --image, --tpu or --gpu, and a command after --")
    if min(args.slices, args.nodes, args.gpus_per_node) < 1:
        parser.error("expected positive numbers of slices, nodes and GPUs")
    if args.max_restarts is None:
        args.max_restarts = RESTARTS[args.verb]
    if args.tpu:
        if not args.topology:
            parser.error("--tpu needs --topology")
        if args.nodes > 1:
            parser.error("--nodes are of GPUs; TPUs have --topology and --slices")
        try:
            slices.find(args.tpu, args.topology)
        except ValueError as error:
            parser.error(str(error))
    elif args.topology or args.slices > 1:
        parser.error("--topology and --slices are of TPUs; GPUs have --nodes")
    choose_network(parser, args)
    try:
        args.pod_spec = pods.read(args.pod_spec) if args.pod_spec else {}
    except ValueError as error:
        parser.error(str(error))
    common.check_workdir(parser, args)
    if args.verb == "xpk":
        check_xpk(parser, args)
    else:
        check_shared(parser, args)


def choose_network(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set ``network`` to a kind or None, and ``network_names`` to a list."""
    if args.network == "auto":
        several = args.nodes > 1 and args.gpus_per_node == networks.NODE_GPUS
        args.network = networks.GKE.get(args.gpu) if several else None
    elif args.network == "none":
        args.network = None
    elif args.tpu or args.gpus_per_node != networks.NODE_GPUS:
        parser.error(f"--network is of whole GPU nodes, with {networks.NODE_GPUS} GPUs")
    usual = networks.NAMES.get(args.network, [])
    given = args.network_names.split(",") if args.network_names else usual
    if len(given) != len(usual):
        parser.error(f"got {len(given)} --network-names; expected {len(usual)}, as {usual}")
    args.network_names = given


def check_xpk(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """xpk writes the JobSet itself: refuse options that it has no equivalent for."""
    if not (args.cluster and args.tpu):
        parser.error("xpk needs --cluster, and --tpu")
    cannot = {
        "--mount": (args.mount, "--xpk-flag=--storage=NAME, of `xpk storage attach`"),
        "--claim": (args.claim, "--xpk-flag=--storage=NAME, of `xpk storage attach`"),
        "--pod-spec": (args.pod_spec, "run in place of xpk"),
        "--queue": (args.queue, "--xpk-flag=--priority=NAME: xpk has a queue of its own"),
        "--service-account": (args.service_account, "run in place of xpk"),
        "--kubectl-flag": (args.kubectl_flag, "--xpk-flag=--project=P and --xpk-flag=--zone=Z"),
    }
    for name, (given, instead) in cannot.items():
        if given:
            parser.error(f"xpk does not take {name}; use {instead}")


def check_shared(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse a workdir on a pod's own disk: it is lost with the pod, and others do not see it."""
    workdir = common.option(args.command, "--workdir")
    containers = args.pod_spec.get("spec", {}).get("containers", [])
    ours = [c for c in containers if c.get("name") == CONTAINER]
    places = [m["mountPath"] for c in ours for m in c.get("volumeMounts", [])]
    places += [SHARED] if args.claim else []
    if workdir and "://" not in workdir and not any(common.inside(workdir, p) for p in places):
        parser.error(
            f"--workdir={workdir} is on each pod's own disk, which goes with the pod; give "
            f"--workdir=gs://BUCKET/PATH, or --claim=NAME and --workdir={SHARED}/PATH"
        )


def xpk(args: argparse.Namespace) -> list[str]:
    """The command of xpk (0.11 or later) that creates the same job."""
    prefix = slices.FAMILIES[args.tpu].prefix
    # xpk restarts after status 42 and 127 to 255. Status 1 means that another host is gone.
    again = f"1,{flags.STOPPED}"
    return [
        *("xpk", "workload", "create", f"--workload={args.name}", f"--cluster={args.cluster}"),
        *(f"--tpu-type={prefix}-{args.topology}", f"--num-slices={args.slices}"),
        *(f"--docker-image={args.image}", f"--max-restarts={args.max_restarts}"),
        *(f"--restart-on-exit-codes={again}", f"--termination-grace-period-seconds={GRACE}"),
        *(["--spot"] if args.spot else []),
        *args.xpk_flag,
        # xpk's YAML holds the command on one line.
        f"--command={escaped('; '.join(lines(args)))}",
    ]


def first_failure(found: list[dict[str, Any]]) -> tuple[str, str, str]:
    """The pod that failed first, else the first pod; its container; and its state."""
    ends = []
    for pod in found:
        name = pod["metadata"]["name"]
        for container in pod.get("status", {}).get("containerStatuses", []):
            end = container.get("state", {}).get("terminated")
            if end and end["exitCode"] not in (0, flags.STOPPED):
                how = f"status {end['exitCode']}"
                ends.append((end.get("finishedAt") or "", name, container.get("name", ""), how))
    if ends:
        when, name, container, how = min(ends)
        return name, container, f"was the first to fail, at {when}, with {how}"
    return min(p["metadata"]["name"] for p in found), "", "is the first pod; none has failed"


def logs(args: argparse.Namespace, kubectl: list[str], show: list[str]) -> int:
    """Print the log of the pod that failed first."""
    if args.dry_run:
        print(common.join([*show, "--output=json"]))
        print(common.join([*kubectl, "logs", "POD", "--tail=100"]))
        return 0
    done = common.run([*show, "--output=json"], stdout=subprocess.PIPE)
    found = json.loads(done.stdout)["items"] if done.returncode == 0 else []
    if not found:
        sys.exit(f"no pods of {args.name}")
    name, container, what = first_failure(found)
    print(f"{name} {what}. Its log:", file=sys.stderr)
    one = [f"--container={container}"] if container else []
    return common.run([*kubectl, "logs", name, *one, "--tail=100"]).returncode


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    kubectl = ["kubectl", *args.kubectl_flag, f"--namespace={args.namespace}"]
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
        # As a YAML comment, so that the output can be applied as it is.
        print(f"# {common.join(command)}\n{text}" if text else common.join(command), end="")
        print(end="" if text else "\n")
        return 0
    return common.run(command, input=text).returncode


if __name__ == "__main__":
    sys.exit(main())
