"""How far the work is and when it should end: one line that changes on a terminal, a few in a log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

log = logging.getLogger(__name__)
TERMINAL, LOG = 0.5, 30.0  # seconds between two reports


class Progress:
    """Counts bytes, records and broken ones, of all processes, while it is entered.

    ``total`` bytes are to be done, of which ``before`` were when it began. ``counts``: where processes
    count.
    """

    def __init__(self, what: str, total: int, before: int, counts: Any):
        self._what, self._total, self._before = what, max(total, 1), before
        self.counts = counts
        counts[:] = [before, 0, 0]
        self._end = threading.Event()
        self._terminal = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def tell(self, done: int, records: int, broken: int) -> None:
        """Count what has just been done here."""
        tell(self.counts, done, records, broken)

    def __enter__(self) -> Progress:
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()
        self._show(last=True)

    def _report(self) -> None:
        while not self._end.wait(TERMINAL if self._terminal else LOG):
            self._show(last=False)

    def _show(self, last: bool) -> None:
        done, records, broken = self.counts[:]
        seconds = time.monotonic() - self._since
        text = line(self._what, done, self._total, self._before, records, broken, seconds)
        if self._terminal:
            print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            log.info("%s", text)


def tell(counts: Any, done: int, records: int, broken: int) -> None:
    """Add to the counts that all processes share."""
    with counts.get_lock():
        counts[0] += done
        counts[1] += records
        counts[2] += broken


def line(
    what: str, done: int, total: int, before: int, records: int, broken: int, seconds: float
) -> str:
    """``reading: 34%, 5120 records, 812/s, 3 broken, 0:01:23 left``."""
    rate = records / seconds if seconds > 0 else 0.0
    text = f"{what}: {100 * done // total}%, {records} records, {rate:.0f}/s"
    if broken:
        text += f", {broken} broken"
    if before < done < total:
        text += f", {clock((total - done) * seconds / (done - before))} left"
    elif done >= total:
        text += f", in {clock(seconds)}"
    return text


def clock(seconds: float) -> str:
    """``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
