"""Reserve a place in a bucket for one job, by an object that the holder keeps rewriting.

Buckets have no locks that end with their process. The holder creates the object, which only one job can
do, and rewrites it every ``BEAT`` seconds. A job that finds such an object watches it. If it changes,
the holder is alive and the new job is refused. If it does not change for ``LEASE`` seconds, the holder
is dead and the new job replaces it. Clocks are never compared. Every write names the generation that it
replaces, so of two new jobs only one succeeds, and a holder that was wrongly thought dead (stopped, or
cut off) finds out at its next beat. Holders check that they still hold the place before they save
(``sure``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from dit.storage.bucket import BucketPath, StorageError, TakenError
from dit.types import OutsideError

log = logging.getLogger(__name__)
BEAT = 10.0  # seconds between two signs of life
LEASE = 60.0  # seconds without one after which a holder is dead
LOOK = 1.0  # seconds between two looks at another job's object


class Lease:
    """A lease that this process holds from ``take`` to ``release``."""

    def __init__(self, file: BucketPath):
        self._file = file
        self._me = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "token": secrets.token_hex(8),
        }
        self._generation, self._beats, self._heard = 0, 0, 0.0
        self._lost = False
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def take(self) -> None:
        """Become the holder; OutsideError if another job holds the place."""
        watched, since, generation = None, 0.0, 0
        while True:
            try:
                self._write(generation)
                break
            except TakenError:
                if self._ours():  # our own write succeeded, but the answer was lost
                    break
            while True:
                try:
                    text, generation = self._file.read()
                except FileNotFoundError:
                    generation = 0
                    break
                if watched is None:
                    watched, since = generation, time.monotonic()
                    log.warning(
                        "%s belongs to %s; seeing for up to %.0f s whether that lives",
                        self._file.parent,
                        _holder(text),
                        LEASE,
                    )
                if generation != watched:
                    raise OutsideError(
                        f"{self._file.parent} is in use by another job ({_holder(text)}); two jobs "
                        "would spoil each other's checkpoints. Stop it, or give another --workdir"
                    )
                if time.monotonic() - since > LEASE:
                    log.warning("%s gives no sign of life; taking its place", _holder(text))
                    break
                time.sleep(LOOK)
        self._thread.start()

    def sure(self) -> None:
        """OutsideError if another job has taken the place; asks the bucket if the last beat is old."""
        if not self._lost and time.monotonic() - self._heard > 2 * BEAT:
            self._beat()
        if self._lost:
            raise OutsideError(
                "this job was stopped or cut off for so long that another one has taken "
                f"{self._file.parent}; it ends here and leaves the place to that one"
            )

    def release(self) -> None:
        """Give the place up, so that the next job need not wait."""
        self._done.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(StorageError, FileNotFoundError):
                self._file.unlink(generation=self._generation)

    def _live(self) -> None:
        while not self._lost and not self._done.wait(BEAT):
            try:
                self._beat()
            except StorageError as error:
                log.warning("%s; trying again", error)

    def _beat(self) -> None:
        with self._lock:
            try:
                self._write(self._generation)
            except TakenError:
                self._lost = not self._ours()

    def _write(self, generation: int) -> None:
        text = json.dumps({**self._me, "beats": self._beats})
        self._generation = self._file.put(text.encode(), generation)
        self._beats, self._heard = self._beats + 1, time.monotonic()

    def _ours(self) -> bool:
        """Whether the object is our own write, whose answer was lost."""
        try:
            text, generation = self._file.read()
        except FileNotFoundError:
            return False
        if _read(text).get("token") != self._me["token"]:
            return False
        self._generation, self._heard = generation, time.monotonic()
        return True


@contextlib.contextmanager
def hold(file: BucketPath) -> Iterator[Lease]:
    """Hold the place that ``file`` represents; OutsideError if another job holds it."""
    lease = Lease(file)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def _read(text: bytes) -> dict:
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


def _holder(text: bytes) -> str:
    return str(_read(text).get("holder", "unknown"))
