"""Several processes as one job: they start together, agree, and end together.

Every process runs the same program on its own devices. ``initialize`` connects them, ``agree`` compares
what must be the same everywhere, ``guard`` ends all processes at the first error of any, and
``HighestOfAll`` shares the largest of their values. With a single process these do nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dit import storage
from dit.config import number
from dit.parallel import cluster
from dit.types import Count, OutsideError, UserError, Whole

HEARTBEAT_SECONDS = 10  # a process that is silent for longer is dead, and so is the job
SHUTDOWN_SECONDS = 120  # how long the first process to finish waits for the last
WATCH_SECONDS = 2  # how often a process looks for another's error
WATCH_BUCKET_SECONDS = 10  # the same in a bucket, where every look costs money
SHARED_SECONDS = 40  # how long a process waits for process 0's mark in the shared workdir


def initialize(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    shutdown_seconds: int = SHUTDOWN_SECONDS,
) -> str | None:
    """Connect the processes of this job. Call this before JAX looks at a device.

    ``coordinator`` (``host:port`` of process 0), ``processes`` and ``process`` override the variables
    ``DIT_COORDINATOR``, ``DIT_NUM_PROCESSES`` and ``DIT_PROCESS_ID``; ``parallel.cluster`` lists the
    other sources. Returns the kind of cluster, or None for a single process. Raises UserError for
    incomplete settings, and OutsideError if the other processes do not answer.
    """
    given = zip(cluster.OURS, (coordinator, processes, process), strict=True)
    flags = {name: str(value) for name, value in given if value is not None}
    found = cluster.find({**os.environ, **flags})
    if found is None:
        return None
    # The training loop handles signals: JAX's own service would swallow SIGTERM until polled.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=shutdown_seconds,
            **found.arguments,
        )
    except jax.errors.JaxRuntimeError as error:
        where = found.arguments.get("coordinator_address", f"the {found.kind} job")
        raise OutsideError(
            f"the {found.processes} processes could not be connected at {where}: {error}"
        ) from error
    return found.kind


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that runs on several hosts, for ``connect``."""
    parser.add_argument("--coordinator", help="host:port of process 0, where there are several")
    parser.add_argument("--processes", type=number(Count), help="how many there are")
    parser.add_argument("--process", type=number(Whole), help="which of them this is, from 0")


def connect(args: argparse.Namespace) -> None:
    """Call ``initialize`` with the flags of ``add_options``."""
    initialize(coordinator=args.coordinator, processes=args.processes, process=args.process)


def say(text: str) -> None:
    """Print on process 0 only."""
    if is_main():
        print(text, flush=True)


def is_main() -> bool:
    """Whether this is process 0, which alone writes logs and draws bars."""
    return jax.process_index() == 0


def agree(name: str, value: Callable[[], str]) -> None:
    """Raise UserError on every process, naming those that differ, unless all give the same ``value``.

    Processes compare hashes. A single process compares nothing and does not call ``value``.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(value().encode()).digest()
    host = socket.gethostname().encode()[:64].ljust(64, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(digest + host, np.uint8))
    digests = [row[:32].tobytes() for row in rows]
    usual = max(digests, key=digests.count)  # the most frequent, or the first of several
    odd = [_named(i, row[32:]) for i, row in enumerate(rows) if digests[i] != usual]
    if odd:
        raise UserError(
            f"{name} is not the same on all {len(rows)} processes: {', '.join(odd)} differs from the "
            "others. Give every process the same command, code and libraries"
        )


def who(flag: bool) -> list[str]:
    """``process 1 on host`` for each process whose ``flag`` is true; the same list on all of them.

    All processes must call this. It synchronises them, so it is not for every step.
    """
    if jax.process_count() == 1:
        return [f"process 0 on {socket.gethostname()}"] if flag else []
    host = socket.gethostname().encode()[:64].ljust(64, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(bytes([flag]) + host, np.uint8))
    return [_named(i, row[1:]) for i, row in enumerate(rows) if row[0]]


def highest_of_all(value: int) -> int:
    """The largest ``value`` of all processes, all of which must call this."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array(value, np.int32)).max())


def meet(name: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class HighestOfAll:
    """``highest(value)``: the largest value that any process gave ``lag`` calls ago, on all of them.

    Each call queues one small reduction on the devices. Nobody waits for it as long as the devices are
    at most ``lag`` steps behind. A single process gets its own value back at once.
    """

    def __init__(self, mesh: Mesh, lag: int):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._shape, self._lag = (mesh.size,), lag
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._sent: collections.deque[jax.Array] = collections.deque()
        self._arrays: dict[int, jax.Array] = {}

    def __call__(self, value: int) -> int:
        if jax.process_count() == 1:
            return value
        if value not in self._arrays:
            self._arrays[value] = jax.make_array_from_callback(
                self._shape, self._sharding, lambda _: np.full(1, value, np.int32)
            )
        self._sent.append(self._max(self._arrays[value]))
        return int(self._sent.popleft()) if len(self._sent) > self._lag else 0


@contextlib.contextmanager
def guard(workdir: storage.Place, *, writes: bool = True) -> Iterator[None]:
    """Inside, an error of any process ends all of them, and each reports that error.

    With JAX alone, a failed process would wait for the others, and they for it. Here it writes its error
    to ``workdir/error-<process>.log`` and exits at once, with status 2 for bad input and 1 for anything
    else. The others find the file, or JAX tells them that a process is gone (after
    ``HEARTBEAT_SECONDS``), and they exit too. A single process fails as usual. Raises UserError on all
    processes if ``workdir`` is not one place that all of them see. A read-only ``workdir`` is accepted
    if the job only reads it (``writes`` false).
    """
    if jax.process_count() == 1:
        yield
        return
    errors = _Errors(workdir, _shared(workdir, writes))
    done = threading.Event()
    threading.Thread(target=errors.watch, args=(done,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        errors.end(error)
    finally:
        done.set()


def _shared(workdir: storage.Place, writes: bool) -> str:
    """Check that all processes share the workdir; return a name for this run, which marks its errors.

    Process 0 leaves a mark in the workdir, and the others look for it. If hosts wrote to disks of their
    own, the job would hang silently at its first checkpoint.
    """
    number = np.array([secrets.randbits(31), secrets.randbits(31)], np.int32)
    name = "".join(f"{n:08x}" for n in multihost_utils.broadcast_one_to_all(number))
    mark, problem = workdir / f".job-{name}", ""
    if is_main():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            for old in (*workdir.glob("error-*.log"), *workdir.glob(".job-*")):
                old.unlink(missing_ok=True)
            mark.write_bytes(b"")
        except OSError as error:
            problem = str(error)
    # Write the mark before anyone looks: network file systems may cache that a file is missing.
    if who(bool(problem)):
        if not writes:
            return name
        raise UserError(
            f"process 0 cannot write in {workdir} ({problem or 'see what it says'}); give another "
            "--workdir, which all processes can reach"
        )
    deadline, seen = time.monotonic() + SHARED_SECONDS, is_main()
    while not seen and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            seen = mark.exists()
        time.sleep(0 if seen else 0.2)
    blind = who(not seen)
    if is_main():
        mark.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"{workdir} is not one directory for all processes: {', '.join(blind)} did not find in "
            f"it within {SHARED_SECONDS} s what process 0 wrote there. Give a --workdir that all hosts "
            "share: a network file system mounted on each, or gs://BUCKET/PATH"
        )
    return name


def _named(process: int, host: np.ndarray) -> str:
    name = host.tobytes().rstrip(b"\0").decode(errors="replace")
    return f"process {process} on {name}"


class _Errors:
    """The errors of a run's processes: one file each in the workdir, with run, status and text."""

    def __init__(self, workdir: storage.Place, run: str):
        self._workdir, self._run = workdir, run
        remote = isinstance(workdir, storage.BucketPath)
        self._every = WATCH_BUCKET_SECONDS if remote else WATCH_SECONDS
        self._me = f"process {jax.process_index()} of {jax.process_count()}"
        self._file = workdir / f"error-{jax.process_index()}.log"

    def first(self) -> tuple[int, str] | None:
        """The status and text of another process's error."""
        for file in self._workdir.glob("error-*.log"):
            run, _, rest = file.read_text().partition("\n")
            status, _, text = rest.partition("\n")
            if run == self._run and file.name != self._file.name:
                return int(status), text
        return None

    def watch(self, done: threading.Event) -> None:
        """Exit as soon as another process has failed."""
        while not done.wait(self._every):
            with contextlib.suppress(OSError, ValueError):  # still being written: look again
                other = self.first()
                if other is not None:
                    self._follow(*other)

    def end(self, error: BaseException) -> NoReturn:
        """Print what went wrong, here or on the process that failed first, and exit."""
        if isinstance(error, jax.errors.JaxRuntimeError):  # usually another process is gone
            deadline = time.monotonic() + self._every
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError, ValueError):
                    other = self.first()
                    if other is not None:
                        self._follow(*other)
                time.sleep(self._every / 20)
        status = {OutsideError: 1, UserError: 2, KeyboardInterrupt: 130}
        code = next((s for kind, s in status.items() if isinstance(error, kind)), 1)
        short = f"{type(error).__name__}: {error}"
        text = f"{self._me} on {socket.gethostname()} failed: {short}"
        expected = isinstance(error, UserError)
        if code == 1 and not expected:
            text += "\n" + "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            self._workdir.mkdir(parents=True, exist_ok=True)
            storage.write(self._file, f"{self._run}\n{code}\n{text}\n")
        if (
            is_main()
        ):  # JAX ends the others as soon as process 0 is gone: let them read the file first
            time.sleep(self._every + 1)
        _exit(code, f"error: {error}" if expected and is_main() else text)

    def _follow(self, status: int, text: str) -> NoReturn:
        _exit(status, f"{self._me} stops, because of the first error: {text}")


def _exit(status: int, text: str) -> NoReturn:
    print(text.rstrip(), file=sys.stderr)
    with contextlib.suppress(Exception):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
