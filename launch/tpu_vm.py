"""Train on a Cloud TPU pod, or several, through queued resources.

    python launch/tpu_vm.py create --name=dit --zone=us-east5-b --type=v5litepod-256 --spot
    python launch/tpu_vm.py run    --name=dit --zone=us-east5-b --type=v5litepod-256 --spot \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=/mnt/shared/xl2
    python launch/tpu_vm.py status|logs|stop|delete --name=dit --zone=us-east5-b

``run`` makes what ``create`` makes if it is not there, copies the last commit of this repository to
every worker, installs it and starts the command on all of them: it goes on if the connection breaks, and
``run --follow`` watches it again. When the pod is preempted it is deleted, asked for again, and the
command goes on from its last checkpoint. When a worker fails, the log of the first one is shown.
``--dry-run`` prints the commands of one round and runs nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

import common
import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
GCLOUD = ["gcloud", "compute", "tpus", "queued-resources"]
CHIPS = {"v4": "v4", "v5litepod": "v5e", "v5p": "v5p", "v6e": "v6e"}  # by the start of --type
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATED")
PREEMPTED = -1  # in place of an exit status
TAIL = 40
# The images have an older Python than we need; uv brings one along.
SETUP = (
    "set -e; rm -rf dit-jax; mkdir dit-jax; tar xzf dit-jax.tgz -C dit-jax; "
    "python3 -m pip install --quiet --user --upgrade uv; "
    "python3 -m uv venv --quiet --clear --python 3.12 dit-env; "
    "python3 -m uv pip install --quiet --python dit-env/bin/python -e './dit-jax[tpu]'"
)
ENDED = (
    "cat dit-run/*.status 2>/dev/null || "
    "if ls dit-run/*.pid >/dev/null 2>&1; then echo running; else echo nothing; fi"
)
PATIENCE = 10  # looks in a row that find nothing running, or no worker
REPORT = (
    f'for f in dit-run/*.status; do echo "DIT-STATUS $(cat "$f")"; done; '
    f'tail -q -n {TAIL} dit-run/*.log | sed "s/^/DIT-LOG $(hostname) /"'
)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, and as ``command`` what comes after ``--``."""
    parser = argparse.ArgumentParser(
        prog="launch/tpu_vm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = ("create", "run", "status", "logs", "stop", "delete")
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("--name", required=True, help="of the queued resource")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="by default the one that gcloud is set to")
    parser.add_argument("--type", help="accelerator type: v5litepod-256, v5p-128, v6e-256, v4-128")
    parser.add_argument("--runtime", help="software version; by default the usual one of the type")
    parser.add_argument("--slices", type=int, default=1, help="pods, connected by the data center")
    parser.add_argument("--spot", action="store_true", help="cheaper, and preempted at any time")
    parser.add_argument("--reserved", action="store_true", help="from a reservation")
    parser.add_argument("--service-account", help="of the workers: it must reach the workdir")
    parser.add_argument(
        "--cache", default=flags.CACHE, help="compiled programs; gs:// outlives a pod"
    )
    parser.add_argument("--retries", type=int, default=20, help="new pods after preemptions")
    parser.add_argument("--poll", type=float, default=30, help="seconds between two looks")
    parser.add_argument("--follow", action="store_true", help="watch a command that runs already")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    args, args.command = common.parse(parser, argv)
    if args.verb in ("create", "run") and not args.follow and not args.type:
        parser.error(f"{args.verb} needs --type")
    if args.type and args.type.split("-")[0] not in CHIPS:
        parser.error(
            f"unknown --type {args.type}; expected one that starts with {', '.join(CHIPS)}"
        )
    if (args.verb == "run" and not args.follow) != bool(args.command):
        parser.error("run needs a command after --, and nothing else takes one")
    return args


class Pod:
    """The queued resource of one job, through gcloud."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.where = [args.name, f"--zone={args.zone}"]
        if args.project:
            self.where.append(f"--project={args.project}")

    def call(self, command: list[str], *, read: bool = False, check: bool = True) -> str | None:
        """Run a command, or print it; its output if ``read``. None if it failed, or did not run."""
        if self.args.dry_run:
            print(shlex.join(command))
            return None
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE if read else None)
        if done.returncode and check:
            sys.exit(f"this failed with status {done.returncode}: {shlex.join(command)}")
        return None if done.returncode else (done.stdout or "")

    def ssh(self, command: str, workers: str = "all", **how: bool) -> str | None:
        """Run a shell command on every worker, or on the first (``workers="0"``)."""
        on = [f"--node={workers}", f"--worker={workers}"]
        return self.call([*GCLOUD, "ssh", *self.where, *on, f"--command={command}"], **how)

    def state(self) -> str:
        """ACTIVE and so on, or "" where there is none."""
        ask = [*GCLOUD, "describe", *self.where, "--format=value(state.state)"]
        return (self.call(ask, read=True, check=False) or "").strip()

    def create(self) -> None:
        """Ask for it unless it is there, and wait until it is ours."""
        args, state = self.args, self.state()
        if state and state != "ACTIVE" and state not in COMING:  # FAILED, SUSPENDED: never again
            self.delete()
            state = ""
        if not state:
            chip = CHIPS[args.type.split("-")[0]]
            nodes = [f"--node-id={args.name}"]
            if args.slices > 1:
                nodes = [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
            asked = [
                f"--accelerator-type={args.type}",
                f"--runtime-version={args.runtime or RUNTIMES[chip]}",
                *nodes,
                *(["--spot"] if args.spot else []),
                *(["--reserved"] if args.reserved else []),
                *([f"--service-account={args.service_account}"] if args.service_account else []),
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
        chip = CHIPS[self.args.type.split("-")[0]]
        script = "; ".join(
            [
                *flags.shell(chip, self.args.cache).splitlines(),
                'export PATH="$HOME/dit-env/bin:$PATH"',
                "cd dit-jax || exit 1",
                f"exec {shlex.join(self.args.command)}",
            ]
        )
        worker = f"bash dit-jax/launch/worker.sh dit-run bash -c {shlex.quote(script)}"
        with tempfile.TemporaryDirectory() as folder:
            source = "dit-jax.tgz" if self.args.dry_run else f"{folder}/dit-jax.tgz"
            archive = ["git", "-C", str(ROOT), "archive", "--format=tar.gz"]
            self.call([*archive, f"--output={source}", "HEAD"])
            name, *zone = self.where
            to = [f"{name}:dit-jax.tgz", *zone, "--node=all", "--worker=all"]
            self.call([*GCLOUD, "scp", source, *to])
        self.ssh(SETUP)
        self.ssh(f"rm -rf dit-run; nohup {worker} </dev/null >/dev/null 2>&1 &")

    def follow(self) -> int:
        """Wait for the end of the command on the first worker: its status, or PREEMPTED."""
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
                time.sleep(2 * self.args.poll)  # a preemption ends the command before the pod
            if self.state() != "ACTIVE":
                return PREEMPTED
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
    """Run the command to its end, on as many pods as it takes."""
    args = pod.args
    for attempt in range(args.retries + 1):
        if attempt or not args.follow:
            pod.create()
            pod.start()
        status = pod.follow()
        if status == PREEMPTED and args.command:
            print(f"{args.name} was preempted; asking for another", file=sys.stderr)
            continue
        if status not in (0, flags.STOPPED):
            pod.report()
        return 1 if status == PREEMPTED else status
    print(f"preempted {args.retries + 1} times; run it again to go on", file=sys.stderr)
    return flags.STOPPED


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    pod = Pod(args)
    if args.verb == "run":
        return run(pod)
    if args.verb == "create":
        pod.create()
    elif args.verb == "delete":
        pod.delete()
    elif args.verb == "status":
        pod.call([*GCLOUD, "describe", *pod.where])
        pod.ssh(ENDED, "0")
    elif args.verb == "logs":
        pod.ssh("tail -n 100 -F dit-run/*.log", "0")
    else:  # stop: one signal is enough, all of them save the same step
        pod.ssh("kill -TERM $(cat dit-run/*.pid)", "0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
