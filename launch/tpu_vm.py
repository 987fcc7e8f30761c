"""Train on a Cloud TPU pod, or several, through queued resources.

    python launch/tpu_vm.py create --name=dit --zone=us-east5-b --type=v5litepod-256 --spot
    python launch/tpu_vm.py run    --name=dit --zone=us-east5-b --type=v5litepod-256 --spot \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=gs://BUCKET/xl2
    python launch/tpu_vm.py status|logs|stop|delete --name=dit --zone=us-east5-b

``run`` creates the resource as ``create`` does if it does not exist, copies the last commit of this
repository to every worker, installs it and starts the command on all of them. The command survives a
lost connection, and ``run --follow`` watches it again. Uncommitted changes are refused, or sent with
``--uncommitted``. A preempted pod is deleted and requested again, and the command resumes from its last
checkpoint; the same holds after any signal but that of ``stop``. If a worker fails, the log of the first
to fail is shown. ``--dry-run`` prints the commands of one round and runs nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

import common
import flags
import slices
import source

GCLOUD = ["gcloud", "compute", "tpus", "queued-resources"]
COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATED")
PREEMPTED, SIGNALLED = -1, -2  # take the place of an exit status
TAIL = 40
# The images have an older Python than we need; uv provides one.
SETUP = (
    "set -e; rm -rf dit-jax; mkdir dit-jax; tar xzf dit-jax.tgz -C dit-jax; "
    "python3 -m pip install --quiet --user --upgrade uv; "
    "python3 -m uv venv --quiet --clear --python 3.12 dit-env; "
    "python3 -m uv pip install --quiet --python dit-env/bin/python -e './dit-jax[{extras}]'"
)
ENDED = (
    "if cat dit-run/*.status 2>/dev/null; then [ ! -e dit-run/asked ] || echo asked; "
    "elif kill -0 $(cat dit-run/*.pid 2>/dev/null) 2>/dev/null; then echo running; else echo nothing; fi"
)
# Signalling one worker is enough: all of them save the same step.
STOP = "touch dit-run/asked; kill -TERM $(cat dit-run/*.pid)"
PATIENCE = 10  # consecutive checks that find nothing running, or no worker
REPORT = (
    f'for f in dit-run/*.status; do echo "DIT-STATUS $(cat "$f")"; done; '
    f'tail -q -n {TAIL} dit-run/*.log | sed "s/^/DIT-LOG $(hostname) /"'
)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed options; ``command`` is what follows ``--``."""
    parser = argparse.ArgumentParser(
        prog="launch/tpu_vm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add, more = parser.add_argument, {"action": "append", "default": []}
    add("verb", choices=("create", "run", "status", "logs", "stop", "delete"))
    add("--name", required=True, type=common.dns_name(60), help="of the queued resource")
    add("--zone", required=True)
    add("--project", help="by default the one that gcloud is set to")
    add("--type", help="accelerator type: v5litepod-256, v5p-128, v6e-256, v4-128")
    add("--runtime", help="software version; by default the usual one of the type")
    add("--slices", type=int, default=1, help="pods, connected by the data center")
    add("--spot", action="store_true", help="cheaper, and preempted at any time")
    add("--reserved", action="store_true", help="from a reservation")
    add("--service-account", help="of the workers: it must reach the workdir")
    add("--gcloud-flag", **more, metavar="FLAG", help="for create: --network=N, --internal-ips")
    add("--ssh-flag", **more, metavar="FLAG", help="for ssh and scp: --tunnel-through-iap")
    add("--extra", **more, metavar="NAME", help="extras of the package besides tpu, such as wandb")
    add("--uncommitted", action="store_true", help="send the files as they are, not the commit")
    common.add_mount(parser)
    add("--cache", help="directory of compiled programs; gs:// outlives a pod")
    add("--retries", type=int, default=20, help="new starts after preemptions and signals")
    add("--poll", type=float, default=30, help="seconds between two looks")
    add("--follow", action="store_true", help="watch a command that runs already")
    common.add_shared(parser)
    args, args.command = common.parse(parser, argv)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error for bad options; set ``chip``."""
    if args.verb in ("create", "run") and not args.follow and not args.type:
        parser.error(f"{args.verb} needs --type")
    if (args.verb == "run" and not args.follow) != bool(args.command):
        parser.error("run needs a command after --, and nothing else takes one")
    if args.slices < 1:
        parser.error(f"got {args.slices} slices; expected at least 1")
    hosts = 1
    if args.type:
        try:
            args.chip, slice_ = slices.of_type(args.type)
        except ValueError as error:
            parser.error(str(error))
        hosts = slice_.hosts * args.slices
    common.check_workdir(parser, args)
    workdir = common.option(args.command, "--workdir")
    if workdir and "://" not in workdir and (hosts > 1 or args.spot):
        print(
            f"warning: --workdir={workdir} is on each worker's own disk, unless you have mounted a "
            "shared one there; give --workdir=gs://BUCKET/PATH",
            file=sys.stderr,
        )


class Pod:
    """The queued resource of one job, through gcloud."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.where = [args.name, f"--zone={args.zone}"]
        if args.project:
            self.where.append(f"--project={args.project}")

    def call(self, command: list[str], *, read: bool = False, check: bool = True) -> str | None:
        """Run a command, or print it; its output if ``read``. None if it failed or did not run."""
        if self.args.dry_run:
            print(common.join(command))
            return None
        done = common.run(command, stdout=subprocess.PIPE if read else None)
        if done.returncode and check:
            sys.exit(f"this failed with status {done.returncode}: {common.join(command)}")
        return None if done.returncode else (done.stdout or "")

    def ssh(self, command: str, workers: str = "all", **how: bool) -> str | None:
        """Run a shell command on every worker, or on the first (``workers="0"``)."""
        on = [f"--node={workers}", f"--worker={workers}", *self.args.ssh_flag]
        return self.call([*GCLOUD, "ssh", *self.where, *on, f"--command={command}"], **how)

    def state(self) -> str:
        """The state, such as ACTIVE, or "" if there is no resource."""
        ask = [*GCLOUD, "describe", *self.where, "--format=value(state.state)"]
        return (self.call(ask, read=True, check=False) or "").strip()

    def create(self) -> None:
        """Request the resource unless it exists, and wait until it is active."""
        args, state = self.args, self.state()
        if state and state != "ACTIVE" and state not in COMING:  # FAILED, SUSPENDED: for good
            self.delete()
            state = ""
        if not state:
            runtime = args.runtime or slices.FAMILIES[args.chip].runtime
            nodes = [f"--node-id={args.name}"]
            if args.slices > 1:
                nodes = [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
            asked = [
                f"--accelerator-type={args.type}",
                f"--runtime-version={runtime}",
                *nodes,
                *(["--spot"] if args.spot else []),
                *(["--reserved"] if args.reserved else []),
                *([f"--service-account={args.service_account}"] if args.service_account else []),
                *args.gcloud_flag,
            ]
            self.call([*GCLOUD, "create", *self.where, *asked])
        while not args.dry_run and (state := self.state()) != "ACTIVE":
            if state not in COMING:
                sys.exit(f"{args.name} is {state or 'gone'}; delete it and ask again")
            time.sleep(args.poll)

    def delete(self) -> None:
        self.call([*GCLOUD, "delete", *self.where, "--force", "--quiet"])

    def start(self) -> None:
        """Copy the repository to every worker, install it, and start the command there."""
        args = self.args
        if (self.ssh(ENDED, "0", read=True, check=False) or "").startswith("running"):
            sys.exit(f"a command runs on {args.name}: `run --follow` watches it, `stop` stops it")
        script = "; ".join(
            [
                *flags.shell(args.chip, args.cache, env=args.env),
                'export PATH="$HOME/dit-env/bin:$PATH"',
                "cd dit-jax || exit 1",
                f"exec {common.join(args.command)}",
            ]
        )
        worker = f"bash dit-jax/launch/worker.sh dit-run bash -c {common.quote(script)}"
        with tempfile.TemporaryDirectory() as folder:
            file = f"{tempfile.gettempdir() if args.dry_run else folder}/dit-jax.tgz"
            self.call(source.archive(file, args.uncommitted))
            name, *zone = self.where
            to = [f"{name}:dit-jax.tgz", *zone, "--node=all", "--worker=all", *args.ssh_flag]
            self.call([*GCLOUD, "scp", file, *to])
        self.ssh(SETUP.format(extras=self.extras()))
        for one in args.mount:
            mount = ["bash", "dit-jax/launch/mount.sh", one.bucket, one.prefix, one.path]
            self.ssh(common.join(mount))
        self.ssh(f"rm -rf dit-run; nohup {worker} </dev/null >/dev/null 2>&1 &")

    def extras(self) -> str:
        """The extras of the package to install, with the libraries for buckets if needed."""
        gcs = ["gcs"] if common.wants_buckets(self.args) else []
        return ",".join(dict.fromkeys(["tpu", *gcs, *self.args.extra]))

    def follow(self) -> int:
        """Wait until the command ends on the first worker; return its status, PREEMPTED or SIGNALLED."""
        missed = 0
        while missed < PATIENCE:
            text = (self.ssh(ENDED, "0", read=True, check=False) or "").split()
            if self.args.dry_run:
                return 0
            missed = 0 if text and text[0] != "nothing" else missed + 1
            status = int(text[1]) if len(text) >= 3 else None
            if status == 0:
                return 0
            if status is not None:
                time.sleep(
                    2 * self.args.poll
                )  # a preemption ends the command first, and then the pod
            if self.state() != "ACTIVE":
                return PREEMPTED
            if status == flags.STOPPED and text[-1] != "asked":
                return SIGNALLED
            if status is not None:
                return status
            time.sleep(self.args.poll)
        sys.exit(f"nothing runs on the first worker of {self.args.name}, or it cannot be reached")

    def report(self) -> None:
        """Print the end of the log of the worker that failed first."""
        lines = (self.ssh(REPORT, read=True, check=False) or "").splitlines()
        ends = [line.split()[1:4] for line in lines if line.startswith("DIT-STATUS ")]
        failed = sorted(e for e in ends if len(e) == 3 and e[1] not in ("0", str(flags.STOPPED)))
        if not failed:
            print("no worker has said how it failed", file=sys.stderr)
            return
        _, status, host = failed[0]
        print(f"{host} was the first to fail, with status {status}. Its log:", file=sys.stderr)
        mark = f"DIT-LOG {host} "
        found = (line.removeprefix(mark) for line in lines if line.startswith(mark))
        print("\n".join(f"  {line}" for line in found), file=sys.stderr)


def run(pod: Pod) -> int:
    """Run the command to its end, on as many pods as that takes."""
    args = pod.args
    again = {
        PREEMPTED: f"{args.name} was preempted; asking for another",
        SIGNALLED: "a signal stopped the command; starting it again",
    }
    for attempt in range(args.retries + 1):
        if attempt or not args.follow:
            pod.create()
            pod.start()
        status = pod.follow()
        if status in again and args.command:
            print(again[status], file=sys.stderr)
            continue
        if status in again:
            print("preempted, or stopped by a signal: run the command again", file=sys.stderr)
            return flags.STOPPED
        if status not in (0, flags.STOPPED):
            pod.report()
        return status
    print(f"preempted {args.retries + 1} times; run it again to go on", file=sys.stderr)
    return flags.STOPPED


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    pod = Pod(args)
    if args.verb == "run":
        missing = source.complaint(args.command, args.uncommitted) if args.command else None
        if missing and not args.dry_run:
            sys.exit(missing)
        if missing:
            print(f"this would be refused: {missing}", file=sys.stderr)
        try:
            return run(pod)
        except KeyboardInterrupt:
            print(
                f"\n{args.name} goes on, and is paid for: `run --follow` watches the command, `stop` "
                "stops it, `delete` gives the pod back",
                file=sys.stderr,
            )
            return 130
    if args.verb == "create":
        pod.create()
    elif args.verb == "delete":
        pod.delete()
    elif args.verb == "status":
        pod.call([*GCLOUD, "describe", *pod.where])
        pod.ssh(ENDED, "0")
    elif args.verb == "logs":
        pod.ssh("tail -n 100 -F dit-run/*.log", "0")
    else:
        pod.ssh(STOP, "0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
