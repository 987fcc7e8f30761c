"""Stop on Ctrl-C and SIGTERM after the current step, not in the middle of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopOnSignal:
    """``with StopOnSignal() as stop:`` sets ``stop.number`` at the first SIGINT or SIGTERM.

    A second Ctrl-C acts as usual, for users who cannot wait for the checkpoint. A second SIGTERM does
    nothing, as schedulers send several. Signals that were ignored stay ignored: a job under ``nohup``,
    or in the background of a script, does not stop at a Ctrl-C meant for another. Handlers can only be
    set in the main thread; in others, signals act as before.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.number = 0
        self._before = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in self.SIGNALS}
            self._before = {n: f for n, f in found.items() if f is not signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
