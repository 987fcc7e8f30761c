"""Train on a Slurm cluster of GPUs: one process a GPU, started again after a preemption.

    python launch/slurm.py --nodes=4 --gpus-per-node=8 --time=24:00:00 --partition=PARTITION \\
        -- python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=runs/xl2

writes a batch script and gives it to ``sbatch``, in the directory that it is called from, which all
nodes must see. Two minutes before the time limit, and when it is preempted, the job is sent SIGTERM: it
saves, is queued again, and goes on. After an error it stops, with the log of the first worker to fail at
the end of its own. ``--dry-run`` prints the script and submits nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import subprocess
import sys

import common
import flags

HERE = pathlib.Path(__file__).resolve().parent
WARNING = 120  # seconds between SIGTERM and the end of the time


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, and as ``command`` what comes after ``--``."""
    parser = argparse.ArgumentParser(
        prog="launch/slurm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--name", default="dit")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--cpus-per-gpu", type=int, default=8, help="for each process")
    parser.add_argument(
        "--time", default="24:00:00", help="limit of one run; then it is queued again"
    )
    parser.add_argument("--logs", default="slurm-logs", help="directory of the logs")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--cache", default="$HOME/.cache/dit-compiled", help="compiled programs")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    args, args.command = common.parse(parser, argv)
    if not args.command:
        parser.error("expected a command after --")
    if min(args.nodes, args.gpus_per_node, args.cpus_per_gpu) < 1:
        parser.error("expected positive numbers of nodes, GPUs and CPUs")
    return args


def script(args: argparse.Namespace) -> str:
    """The batch script."""
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
        "output": f"{args.logs}/%j.out",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None]
    exports = flags.shell("gpu", "CACHE").replace("=CACHE", f'="{args.cache}"')
    worker, first = (shlex.quote(str(HERE / name)) for name in ("worker.sh", "first_failure.sh"))
    logs, command = shlex.quote(args.logs), shlex.join(args.command)
    return f"""#!/usr/bin/env bash
{chr(10).join(lines)}
#SBATCH --requeue

{exports}
# Steps do not take this over from the job by themselves.
export SRUN_CPUS_PER_TASK={args.cpus_per_gpu}

logs={logs}/$SLURM_JOB_ID
rm -f "$logs"/*.status
mkdir -p "$logs"
# A preemption signals this script too: wait for the workers to save.
trap : TERM

# Each task sees all GPUs of its node and takes the one of its local number. A worker that ends must not
# take the others with it at once: they may be saving.
srun --kill-on-bad-exit=0 --wait=60 --gpu-bind=none \\
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
  echo "stopped by a signal and saved; queued again"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
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
    return subprocess.run(["sbatch"], input=text, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
