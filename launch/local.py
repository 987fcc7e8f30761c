"""Run one command as several real processes on this machine, connected as one job.

    python launch/local.py -n 4 -- python -m dit.train --config=configs/digits.py --workdir=runs/digits

Each process has CPUs of its own (``--devices-per-process`` of them, simulated), or with
``--gpus-per-process`` its share of the GPUs. Their lines come out with ``[number]`` before them. When
one fails its last lines are printed again and the others are ended. Ctrl-C and SIGTERM go on to all of
them. The exit status is that of the first to fail.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

LAST_LINES = 30
GRACE_SECONDS = 5  # for the others to end by themselves, and name the error too


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/local.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-n", "--processes", type=int, default=2)
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--devices-per-process", type=int, default=1, help="simulated CPU devices")
    share.add_argument("--gpus-per-process", type=int, help="GPUs of this machine for each")
    parser.add_argument("--port", type=int, help="of the coordinator; a free one by default")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    args = parser.parse_args(argv)
    counts = (args.processes, args.devices_per_process, args.gpus_per_process or 1)
    if min(counts) < 1:
        parser.error("expected positive numbers of processes and devices")
    return args


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def settings(args: argparse.Namespace, port: int, process: int) -> dict[str, str]:
    """What the environment of one process holds besides that of this one."""
    found = {
        "DIT_COORDINATOR": f"127.0.0.1:{port}",
        "DIT_NUM_PROCESSES": str(args.processes),
        "DIT_PROCESS_ID": str(process),
        "TQDM_MININTERVAL": "10",  # bars cannot redraw their line here: seldom is enough
    }
    if args.gpus_per_process:
        first = process * args.gpus_per_process
        mine = range(first, first + args.gpus_per_process)
        return {**found, "CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}
    count = f"--xla_force_host_platform_device_count={args.devices_per_process}"
    given = os.environ.get("XLA_FLAGS", "")
    return {**found, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{given} {count}".strip()}


class Worker:
    """One process, in a group of its own, and the thread that prints its lines."""

    def __init__(self, number: int, command: list[str], env: dict[str, str]):
        self.number, self.last = number, collections.deque(maxlen=LAST_LINES)
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.last.append(line.rstrip("\n"))
            print(f"[{self.number}] {self.last[-1]}", flush=True)

    def status(self) -> int | None:
        """The exit status as a shell gives it, or None while it runs."""
        running = self.process.returncode is None
        code = self.process.poll()
        if running and code is not None:
            self._kill()  # children that outlived it
        return 128 - code if code is not None and code < 0 else code

    def send(self, number: int) -> None:
        """Send a signal, not to its children: a loader must live until all is saved."""
        self.process.send_signal(number)

    def finish(self) -> None:
        """Kill it if it still runs, and wait for the last line."""
        if self.process.poll() is None:
            self._kill()
            self.process.wait()
        self._reader.join(timeout=5)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def watch(workers: list[Worker]) -> int:
    """Wait for all of them, or for the first to fail; its status."""
    stopped = int(os.environ.get("DIT_STOPPED_STATUS") or 0)
    failed = None
    while failed is None and any(w.status() is None for w in workers):
        time.sleep(0.05)
        failed = next((w for w in workers if w.status() not in (None, 0, stopped)), None)
    if failed is None:
        failed = next((w for w in workers if w.status() not in (0, stopped)), None)
    if failed is None:
        return max(w.status() for w in workers)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(w.status() is None for w in workers):
        time.sleep(0.05)
    for worker in workers:
        worker.finish()
    status = failed.status()
    how = f"by {signal.Signals(status - 128).name}" if status > 128 else f"with status {status}"
    print(
        f"\nworker {failed.number} was the first to fail, {how}. Its last lines:", file=sys.stderr
    )
    print("\n".join(f"  {line}" for line in failed.last), file=sys.stderr, flush=True)
    return status


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    port = args.port or free_port()
    envs = [settings(args, port, i) for i in range(args.processes)]
    if args.dry_run:
        for env in envs:
            print(shlex.join(["env", *(f"{k}={v}" for k, v in env.items()), *args.command]))
        return 0
    workers = [Worker(i, args.command, env) for i, env in enumerate(envs)]

    def forward(number: int, frame: object) -> None:
        for worker in workers:
            worker.send(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    try:
        return watch(workers)
    finally:
        for worker in workers:
            worker.finish()


if __name__ == "__main__":
    sys.exit(main())
