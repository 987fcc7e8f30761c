"""Files that only grow, such as logs: written locally, and in the bucket soon after.

For a directory they are written in place. For a bucket they are written to a temporary directory, and
new data are appended to the objects every ``SECONDS`` and at every ``flush``. Flush before a checkpoint,
so that the logs of a killed process reach at least as far as the checkpoint it resumes from.
"""

from __future__ import annotations

import logging
import pathlib
import shutil
import tempfile
import threading

from dit.storage.bucket import BucketPath, StorageError

log = logging.getLogger(__name__)
SECONDS = 30.0  # an object may be changed once a second, and each change costs money


class Growing:
    """Write the files of ``place`` in ``folder``, and only append to them."""

    def __init__(self, place: pathlib.Path | BucketPath):
        self._place = place
        self.remote = isinstance(place, BucketPath)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="dit-")) if self.remote else place
        self._sent: dict[pathlib.Path, int] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        if self.remote:
            self._thread.start()

    def flush(self) -> None:
        """Wait until everything written is in the bucket; StorageError if that fails."""
        if not self.remote:
            return
        with self._lock:
            for file in sorted(p for p in self.folder.rglob("*") if p.is_file()):
                with open(file, "rb") as stream:
                    stream.seek(self._sent.get(file, 0))
                    new = stream.read()
                name = file.relative_to(self.folder).as_posix()
                (self._place / name).append(new)
                self._sent[file] = self._sent.get(file, 0) + len(new)

    def close(self) -> None:
        """Flush for the last time, and stop."""
        if not self.remote or self._done.is_set():
            return
        self._done.set()
        self._thread.join()
        try:
            self.flush()
        except StorageError as error:
            raise StorageError(f"{error}; what was not sent is in {self.folder}") from error
        shutil.rmtree(self.folder, ignore_errors=True)

    def _follow(self) -> None:
        while not self._done.wait(SECONDS):
            try:
                self.flush()
            except StorageError as error:
                log.warning("%s; new data are kept, to be sent later", error)
