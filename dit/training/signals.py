"""Stop on Ctrl-C and SIGTERM after the step in hand, not in the middle of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopOnSignal:
    """``with StopOnSignal() as stop:`` sets ``stop.number`` at the first SIGINT or SIGTERM.

    A second Ctrl-C acts as usual, for whoever cannot wait for the checkpoint; a second SIGTERM does
    nothing, as schedulers send several. Handlers can only be set from the main thread; elsewhere
    signals do what they did before.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.number = 0
        self._before = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.getsignal(s) for s in self.SIGNALS}
            for number in self.SIGNALS:
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
