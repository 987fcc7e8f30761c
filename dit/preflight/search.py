"""The largest batch that fits, and the best mesh: few compilations, each of them of the whole program.

A sweep ranks every mesh, remat policy and batch size by formula (``account.py``), compiles the best, and
ranks what was compiled by the predicted time to a number of images. Reports are kept in a file, one JSON
object a line, so that a sweep that is started again compiles nothing twice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dit.parallel.mesh import PRESETS
from dit.parallel.topology import Topology
from dit.preflight.account import Account, Choice
from dit.types import UserError

Row = dict[str, Any]
SWEPT = ("none", "dots_attention", "dots", "full")  # remat policies
TRIES = 8  # compilations in search of a batch
CLOSE = 32  # the largest batch is found to one part in so many, or to one image a device


def largest_batch(
    compiled: Callable[[int], Row], first: int, unit: int
) -> tuple[Row | None, Row | None, int]:
    """The reports of the largest batch that fits and of one that does not, and how many were compiled.

    ``compiled(batch)``: its report as JSON. ``unit``: batches are multiples of it. Memory grows about
    linearly with the batch, so that two reports predict the third.
    """
    best, worst, tried, batch = None, None, [], max(unit, first // unit * unit)
    while len(tried) < TRIES:
        row = compiled(batch)
        tried.append(row)
        if row["fits"]:
            best = row
        else:
            worst = row
        low = best["images"] if best else 0
        high = worst["images"] if worst else None
        step = max(1, low // CLOSE // unit) * unit
        if high is not None and high - low <= step:
            break
        guess = _crossing(tried) // unit * unit
        batch = max(guess, low + step)  # one step more than what fits settles it
        if high is not None:
            batch = min(batch, high - step)
    return best, worst, len(tried)


def _crossing(tried: Sequence[Row]) -> int:
    """The batch at which the line through two reports reaches the memory of a device."""
    rows = sorted(tried, key=lambda row: abs(row["memory"]["needed"] - row["hbm"]))[:2]
    if len(rows) == 1:
        fixed = sum(
            rows[0]["memory"].get(k, 0) for k in ("parameters", "optimizer", "EMA", "program")
        )
        points = [(0, fixed), (rows[0]["images"], rows[0]["memory"]["needed"])]
    else:
        points = sorted((row["images"], row["memory"]["needed"]) for row in rows)
    (a, needs_a), (b, needs_b) = points
    slope = max((needs_b - needs_a) / (b - a), 1.0)
    return int(max(0.0, a + (rows[0]["hbm"] - needs_a) / slope))


def choices(
    account: Account,
    where: Topology,
    *,
    meshes: Sequence[dict[str, int]] | None,
    policies: Sequence[str] | None,
    batches: Sequence[int],
) -> list[Choice]:
    """What a sweep may compile, the most promising first.

    Left out are choices by which a batch cannot be split, and those that cannot fit, because state,
    gradients and activations alone are too large. ``meshes=None``: the presets of ``parallel.mesh``;
    ``policies=None``: those of ``SWEPT`` that the network can take.
    """
    n = len(where.devices)
    policies = policies or [p for p in SWEPT if p in account.policies]
    found: list[Choice] = []
    for mesh in meshes or [sizes(name, where) for name in PRESETS]:
        for remat, batch in itertools.product(policies, batches):
            choice = Choice(mesh, remat, batch)
            whole = batch % (choice.size("data", "fsdp") * account.accumulate) == 0
            if choice.size(*mesh) == n and whole and choice not in found:
                found.append(choice)
    if where.hbm is not None:
        found = [choice for choice in found if sum(account.parts(choice)) <= where.hbm]

    def promise(choice: Choice) -> tuple[float, float]:
        seconds = account.seconds(choice, where)
        return (seconds / choice.batch if seconds else 0.0), sum(account.parts(choice))

    return sorted(found, key=promise)


def sizes(name: str, where: Topology) -> dict[str, int]:
    """The sizes of a preset's axes, none of them -1."""
    n = len(where.devices)
    preset = PRESETS[name](n, where.slices)
    fixed = math.prod(size for size in preset.values() if size != -1)
    return {axis: n // fixed if size == -1 else size for axis, size in preset.items()}


def sweep(
    candidates: Sequence[Choice],
    compiled: Callable[[Choice], Row],
    key: Callable[[Choice], str],
    rows: Rows,
    tries: int,
    say: Callable[[Choice, Row | UserError], None],
) -> list[Row]:
    """Reports as JSON: of up to ``tries`` candidates that fit, the best first, then of the others.

    After one that does not fit, no other is tried that keeps at least as much.
    """
    done: list[Row] = []
    refused: list[Choice] = []
    for choice in candidates:
        if sum(row["fits"] for row in done) >= tries:
            break
        if any(
            choice.mesh == other.mesh
            and choice.remat == other.remat
            and choice.batch >= other.batch
            for other in refused
        ):
            continue
        row = rows.get(key(choice))
        if row is None:
            try:
                row = compiled(choice)
            except UserError as error:
                say(choice, error)
                continue
            rows.add(key(choice), row)
        if not row["fits"]:
            refused.append(choice)
        say(choice, row)
        done.append(row)
    return sorted(done, key=rank)


def rank(row: Row) -> tuple[bool, float, int]:
    """Less is better: what fits, then less time an image, then less memory."""
    seconds = row["step_seconds"]
    return not row["fits"], (seconds / row["images"] if seconds else 0.0), row["memory"]["needed"]


def digest(config: dict[str, Any], where: Topology, what: str) -> str:
    """What a report depends on: the settings, the devices, the compiler and its flags."""
    versions = [importlib.metadata.version("jax")]
    if where.platform == "tpu":
        versions.append(importlib.metadata.version("libtpu"))
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    text = json.dumps([config, where.name, where.slices, versions, flags, what], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Rows:
    """Reports in a file, a JSON object a line under the key ``key``; only in memory without a path."""

    def __init__(self, path: str | None):
        self._path = pathlib.Path(path) if path else None
        self._rows = {row["key"]: row for row in self._read()}

    def _read(self) -> Iterator[Row]:
        if self._path is None or not self._path.exists():
            return
        lines = self._path.read_text().splitlines()
        for number, text in enumerate(lines, 1):
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                if number == len(lines):  # torn by a kill: compiled again
                    continue
                raise UserError(f"{self._path}, line {number}: expected a JSON object") from error
            if not isinstance(row, dict) or not {"key", "memory", "fits"} <= row.keys():
                raise UserError(f"{self._path}, line {number}: expected a row of a sweep")
            yield row

    def get(self, key: str) -> Row | None:
        """The report that was added before, if any."""
        return self._rows.get(key)

    def add(self, key: str, row: Row) -> None:
        """Keep a report, at once."""
        self._rows[key] = row = {"key": key, **row}
        if self._path is None:
            return
        torn = self._path.exists() and self._path.read_bytes()[-1:] not in (b"\n", b"")
        with self._path.open("a") as file:
            file.write(("\n" if torn else "") + json.dumps(row) + "\n")
