"""Processes that help another one end when it ends, even if it is killed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading


def follow(*_: int) -> None:
    """In a process that another one started: end as soon as that one does."""
    started_by = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([started_by.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
