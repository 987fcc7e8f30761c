"""The record of a sweep: one JSON line per run, failures included. Lines are only ever appended.

A line is written whole and flushed to disk. A kill leaves at most a torn last line, which readers skip
and the next append cuts off. ``VARYING`` names the fields that may differ between two sweeps of the same
runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
from typing import Any

VARYING = ("seconds", "versions", "device")


class Registry:
    """The lines of ``path``, read again at every call: several jobs may append to one file."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)

    def rows(self) -> list[dict[str, Any]]:
        """All complete lines, oldest first."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def latest(self) -> dict[str, dict[str, Any]]:
        """The last line of each row of the plan, by name."""
        return {row["row"]: row for row in self.rows()}

    def append(self, row: dict[str, Any]) -> None:
        """Append one line, after those of other jobs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            whole = text.rfind(b"\n") + 1
            if whole < len(text):
                file.truncate(whole)
            file.write(json.dumps(row, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows sorted by name, without the fields that depend on the machine or the time."""
    kept = [{k: v for k, v in row.items() if k not in VARYING} for row in rows]
    return sorted(kept, key=lambda row: row["row"])
