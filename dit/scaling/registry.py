"""The record of a sweep: one JSON line a run, only ever appended to, failures too.

A line is written whole and flushed to disk, so that a kill leaves at most a torn last line, which
reading leaves out and the next append cuts off. What was measured is in every line; ``VARYING`` names
what may differ between two sweeps of the same runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
from typing import Any

VARYING = ("seconds", "versions", "device")


class Registry:
    """The lines of ``path``, read anew at every call: several jobs may append to one file."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines, oldest first."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def latest(self) -> dict[str, dict[str, Any]]:
        """The last line of each row of the plan, by its name."""
        return {row["row"]: row for row in self.rows()}

    def append(self, row: dict[str, Any]) -> None:
        """Add one line, after whatever other jobs have added."""
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
    """Rows without what varies from one machine or moment to the next, in the order of their names."""
    kept = [{k: v for k, v in row.items() if k not in VARYING} for row in rows]
    return sorted(kept, key=lambda row: row["row"])
