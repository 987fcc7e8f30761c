"""Train on a Slurm cluster of GPUs: one process a GPU, started again after a preemption.

    python launch/slurm.py --nodes=4 --gpus-per-node=8 --time=24:00:00 --partition=PARTITION \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=runs/xl2

writes a batch script and passes it to ``sbatch``, in the current directory, which all nodes must see.
Two minutes before the time limit, and on preemption, the job receives SIGTERM: it saves, is queued
again, and resumes. After ``scancel`` it saves and ends. After an error it stops, and its log ends with
that of the first worker to fail. ``--dry-run`` prints the script that sbatch would read, and submits
nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import common
import flags
import networks

HERE = pathlib.Path(__file__).resolve().parent
WARNING = 120  # seconds between SIGTERM and the time limit


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed options; ``command`` is what follows ``--``."""
    parser = argparse.ArgumentParser(
        prog="launch/slurm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add, more = parser.add_argument, {"action": "append", "default": [], "metavar": "FLAG"}
    add("--name", default="dit")
    add("--nodes", type=int, default=1)
    add("--gpus-per-node", type=int, default=8)
    add("--cpus-per-gpu", type=int, default=8, help="for each process")
    add("--time", default="24:00:00", help="limit of one run; then it is queued again")
    add("--logs", default="slurm-logs", help="directory of the logs")
    add("--partition")
    add("--account")
    add("--qos")
    add("--network", choices=("tcpxo", "gib", "efa"), help="of a cloud's nodes: see networks.py")
    add("--sbatch", **more, help="for sbatch: --mem=0, --reservation=R, --exclusive")
    add("--srun", **more, help="for srun: --container-image=I, --container-mounts=M")
    add("--cache", help="directory of compiled programs; by default in the home directory")
    common.add_shared(parser)
    args, args.command = common.parse(parser, argv)
    if not args.command:
        parser.error("expected a command after --")
    if min(args.nodes, args.gpus_per_node, args.cpus_per_gpu) < 1:
        parser.error("expected positive numbers of nodes, GPUs and CPUs")
    for flag in (*args.sbatch, *args.srun):
        if not flag.startswith("-"):
            parser.error(f"got the flag {flag!r}; expected one such as --sbatch=--mem=0")
    for line in (args.name, args.logs, args.time, args.partition, args.account, args.qos):
        if line and not line.isprintable():
            parser.error(f"got {line!r}; a directive of Slurm is one line")
    if not all(flag.isprintable() for flag in args.sbatch):
        parser.error(f"got {args.sbatch}; a directive of Slurm is one line")
    return args


def directive(flag: str) -> str:
    """A line for sbatch, which splits at spaces and interprets quotes, comments and backslashes."""
    name, equals, value = flag.partition("=")
    if any(c in value for c in " \t'\"#\\"):
        mark = "'" if '"' in value and "'" not in value else '"'
        value = value.replace("\\", "\\\\").replace(mark, f"\\{mark}")
        value = f"{mark}{value}{mark}"
    return f"#SBATCH {name}{equals}{value}"


def script(args: argparse.Namespace) -> str:
    """The batch script."""
    output = args.logs.replace("%", "%%")  # otherwise Slurm would fill in a field
    asked = {
        "job-name": args.name,
        "nodes": args.nodes,
        "ntasks-per-node": args.gpus_per_node,
        "gpus-per-node": args.gpus_per_node,
        "cpus-per-task": args.cpus_per_gpu,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "signal": f"TERM@{WARNING}",
        "open-mode": "append",
        "output": f"{output}/%j.out",
    }
    wanted = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    lines = [directive(flag) for flag in (*wanted, "--requeue", *args.sbatch)]
    exports = flags.shell("gpu", args.cache, networks.slurm_lines(args.network), args.env)
    worker, first = (common.quote(str(HERE / name)) for name in ("worker.sh", "first_failure.sh"))
    logs, command = common.quote(args.logs), common.join(args.command)
    srun = common.join(["--kill-on-bad-exit=0", "--wait=60", "--gpu-bind=none", *args.srun])
    newline = "\n"
    return f"""#!/usr/bin/env bash
# For sbatch, in the directory that the command is to run in.
{newline.join(lines)}

{newline.join(exports)}
# Steps do not take this over from the job by themselves.
export SRUN_CPUS_PER_TASK={args.cpus_per_gpu}

logs={logs}/$SLURM_JOB_ID
rm -f "$logs"/*.status
mkdir -p "$logs"
# A preemption signals this script too: wait for the workers to save.
trap : TERM

# Each task sees all GPUs of its node and takes the one of its local number. A worker that ends must not
# take the others with it at once: they may be saving.
srun {srun} \\
  bash {worker} "$logs" {command} &
step=$!
status=
while kill -0 "$step" 2>/dev/null || [ -z "$status" ]; do # a signal ends the wait, not the step
  wait "$step"
  status=$?
done

stopped=$(cat "$logs"/*.status 2>/dev/null | awk '$2 == {flags.STOPPED}' | wc -l)
failed=$(cat "$logs"/*.status 2>/dev/null | awk '$2 != 0 && $2 != {flags.STOPPED}' | wc -l)
if [ "$stopped" -gt 0 ] && [ "$failed" -eq 0 ]; then
  # scancel ends the job while this runs; a preemption and the time limit leave it running until later.
  case $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID" 2>/dev/null) in
  COMPLETING | CANCELLED)
    echo "cancelled, after saving; not queued again"
    exit {flags.STOPPED}
    ;;
  esac
  if scontrol requeue "$SLURM_JOB_ID"; then
    echo "stopped by a signal and saved; queued again"
    exit 0
  fi
  echo "stopped by a signal and saved, but could not be queued again: submit it again to go on"
  exit {flags.STOPPED}
fi
[ "$status" -eq 0 ] || bash {first} "$logs"
exit "$status"
"""


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    text = script(args)
    if args.dry_run:
        print(text, end="")
        return 0
    pathlib.Path(args.logs).mkdir(parents=True, exist_ok=True)
    return common.run(["sbatch"], input=text).returncode


if __name__ == "__main__":
    sys.exit(main())
