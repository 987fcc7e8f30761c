"""Run a command as several processes on this machine, connected as one job.

    python launch/local.py -n 4 -- python -m dit.train --config=configs/digits.py --workdir=runs/digits

Each process has simulated CPU devices of its own (``--devices-per-process``) or, with
``--gpus-per-process``, its share of the GPUs. Output lines are prefixed with ``[number]``. If a process
fails, its last lines are printed again and the others are ended. Ctrl-C and SIGTERM are passed on to all
of them, so that they save and stop; a second Ctrl-C kills them. The exit status is that of the first
process to fail, or ``DIT_STOPPED_STATUS`` (75 unless set) if a signal stopped them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import common
import flags

COUNT = "--xla_force_host_platform_device_count"
LAST_LINES = 30
PRINTING = threading.Lock()  # one line at a time, as each worker has a thread that prints
GRACE_SECONDS = 5  # time for the others to end by themselves and report the error


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/local.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-n", "--processes", type=int, default=2)
    share = parser.add_mutually_exclusive_group()
    share.add_argument(
        "--devices-per-process", type=int, help="simulated CPU devices; 1 by default"
    )
    share.add_argument("--gpus-per-process", type=int, help="GPUs of this machine for each")
    parser.add_argument("--port", type=int, help="of the coordinator; a free one by default")
    common.add_shared(parser)
    args, args.command = common.parse(parser, argv)
    if not args.command:
        parser.error("expected a command after --")
    given = (args.processes, args.devices_per_process, args.gpus_per_process)
    if min(n for n in given if n is not None) < 1:
        parser.error("expected positive numbers of processes and devices")
    return args


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def settings(args: argparse.Namespace, port: int, process: int) -> dict[str, str]:
    """The variables of one process, added to those of this one or replacing them."""
    found = {
        "DIT_COORDINATOR": f"127.0.0.1:{port}",
        "DIT_NUM_PROCESSES": str(args.processes),
        "DIT_PROCESS_ID": str(process),
        "DIT_STOPPED_STATUS": str(stopped_status()),
        # Progress bars cannot redraw their line here: update them rarely.
        "TQDM_MININTERVAL": os.environ.get("TQDM_MININTERVAL") or "10",
    }
    if args.gpus_per_process:
        first = process * args.gpus_per_process
        mine = range(first, first + args.gpus_per_process)
        found["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))
    else:
        found["JAX_PLATFORMS"] = "cpu"
        words = [f"{COUNT}=1", os.environ.get("XLA_FLAGS", "")]  # the last value of a flag wins
        words += [f"{COUNT}={args.devices_per_process}"] if args.devices_per_process else []
        found["XLA_FLAGS"] = " ".join(filter(None, words))
    for name, value in args.env:
        before = found.get(name, os.environ.get(name)) if name in flags.MERGED else None
        found[name] = f"{before} {value}" if before else value
    return found


def stopped_status() -> int:
    """The exit status of a process that a signal stopped."""
    given = os.environ.get("DIT_STOPPED_STATUS") or ""
    return int(given) if given.isdecimal() else flags.STOPPED


class Worker:
    """One process, in its own process group, and the thread that prints its lines."""

    def __init__(self, number: int, command: list[str], env: dict[str, str]):
        self.number, self.last = number, collections.deque(maxlen=LAST_LINES)
        self.told = False  # to stop
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that Ctrl-C reaches it only once, through us
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.last.append(line.rstrip("\n"))
            with PRINTING:
                print(f"[{self.number}] {self.last[-1]}", flush=True)

    def status(self) -> int | None:
        """The exit status as a shell reports it, or None while it runs."""
        running = self.process.returncode is None
        code = self.process.poll()
        if running and code is not None:
            self._kill()  # children that outlived it
        return 128 - code if code is not None and code < 0 else code

    def send(self, number: int) -> None:
        """Tell it to stop, but not its children: data loaders must live until all is saved."""
        self.told = True
        # A process does not save on SIGHUP.
        self.process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def kill(self) -> None:
        """End it and its children at once."""
        if self.process.poll() is None:
            self._kill()

    def finish(self) -> None:
        """Kill it if it still runs, and wait for the last line."""
        self.kill()
        self.process.wait()
        self._reader.join(timeout=5)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def watch(workers: list[Worker], stopped: int) -> int:
    """Wait until all end or one fails; return its status. ``stopped`` does not count as a failure."""
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
            print(common.join(["env", *(f"{k}={v}" for k, v in env.items()), *args.command]))
        return 0
    workers: list[Worker] = []
    signals: list[int] = []

    def forward(number: int, frame: object) -> None:
        again = number == signal.SIGINT and bool(signals)
        signals.append(number)
        for worker in workers:
            if again:
                worker.kill()
            else:
                worker.send(number)

    # SIGHUP: the terminal is gone, and our processes, in their own groups, would outlive it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    try:
        for i, env in enumerate(envs):
            if not signals:
                workers.append(Worker(i, args.command, env))
                if signals and not workers[-1].told:  # it was being started, so not yet in the list
                    workers[-1].send(signals[-1])
        if len(workers) < len(envs):  # stopped before all had started, so they cannot connect
            return 128 + signals[0]
        return watch(workers, stopped_status())
    except FileNotFoundError:
        print(f"{args.command[0]} was not found", file=sys.stderr)
        return 127
    finally:
        for worker in workers:
            worker.finish()


if __name__ == "__main__":
    sys.exit(main())
