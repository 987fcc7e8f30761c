"""All stages, by several processes of one machine or of many that share a directory.

Each machine has a share of the parts and of the shards, and waits for what the others make. A process
that is killed, as by a decoder that a picture breaks, does not end the run: see ``Team``.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import pathlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from dit.config import fingerprint
from dit.data import records
from dit.data.follow import follow
from dit.data.prepare import encode as encoding
from dit.data.prepare import parts, plan, progress, shards
from dit.data.prepare.encode import Encode
from dit.data.prepare.parts import WORK, Job
from dit.types import UserError

log = logging.getLogger(__name__)
BEGUN = "begun.json"
POLL = 0.5  # seconds between two looks at what others have made
Task = tuple[Callable, tuple]  # what to do with a job, and the rest of its arguments


def run(
    job: Job,
    facts: dict[str, Any],
    *,
    encode: Encode | None = None,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Prepare the records, or go on with them; the manifest.

    ``facts``: what they depend on; where others were begun in the same place, a UserError. ``encode``:
    what runs on the devices, in this process, where the job asks for that. ``workers``: other processes,
    or 0 for this one alone. ``share``: this machine's number, and how many there are.
    """
    if begin(job.out, facts, first=share[0] == 0):
        return finished(job.out)
    own, of = share
    every = job.input.parts
    team = Team(job, min(workers, -(-len(every) // of)))
    try:
        first(job.raw, team, own, of)
        if encode is not None:
            second(job, team, encode, own, of)
        wait("parts", lambda: all(job.done(k) for k in range(len(every))))
        made = plan.make(job, len(every), {} if encode is None else encode.fields)
        last(job, team, made, own, of)
    finally:
        team.leave()
    if own:
        wait("manifest", lambda: (job.out / records.MANIFEST).exists())
        return records.read_manifest(job.out)
    wait("shards", lambda: all(shards.mark(job, shard).exists() for shard in made.shards))
    shards.describe(job, made, facts)
    return finished(job.out)


def first(job: Job, team: Team, own: int, of: int) -> None:
    """Read this machine's share of the parts."""
    every = job.input.parts
    tasks = {
        k: (parts.make, (k, part.what, part.weight))
        for k, part in enumerate(every)
        if k % of == own and not job.done(k)
    }
    mine = sum(part.weight for part in every[own::of])
    left = sum(every[k].weight for k in tasks)
    with progress.Progress("reading", mine, mine - left, team.counts) as told:
        team.work(tasks, told, job.done)


def second(job: Job, team: Team, encode: Encode, own: int, of: int) -> None:
    """Encode them, in this process."""
    mine = range(own, len(job.input.parts), of)
    sizes = {k: len(job.raw.table(k)) for k in mine}
    todo = [k for k in mine if not job.done(k)]
    total = sum(sizes.values())
    before = total - sum(sizes[k] for k in todo)
    with progress.Progress("encoding", total, before, team.counts) as told:
        for k in todo:
            encoding.make(job, k, encode, tell=told.tell)


def last(job: Job, team: Team, made: plan.Plan, own: int, of: int) -> None:
    """Write this machine's share of the shards."""
    tasks = {
        i: (shards.make, (shard,))
        for i, shard in enumerate(made.shards)
        if i % of == own and not shards.mark(job, shard).exists()
    }
    weight = sum(shard.records for shard in made.shards[own::of])
    left = sum(made.shards[i].records for i in tasks)
    with progress.Progress("writing", weight, weight - left, team.counts) as told:
        team.work(tasks, told, lambda i: shards.mark(job, made.shards[i]).exists())


def begin(out: pathlib.Path, facts: dict[str, Any], first: bool) -> bool:
    """Reserve the directory for records of these facts; whether they are there already."""
    known = None
    if (out / records.MANIFEST).exists():
        known = records.read_manifest(out)["made_from"]
    elif (out / WORK / BEGUN).exists():
        known = json.loads((out / WORK / BEGUN).read_text())
    elif out.exists() and any(p.name != WORK for p in out.iterdir()):
        raise UserError(f"{str(out)!r} holds other files; give --out=DIR that is new or empty")
    if known is not None and fingerprint(known) != fingerprint(facts):
        differ = [k for k in {**known, **facts} if known.get(k) != facts.get(k)]
        shown = "; ".join(f"{k} was {known.get(k)!r}, now {facts.get(k)!r}" for k in sorted(differ))
        raise UserError(
            f"{str(out)!r} holds records that were made, or begun, from something else: {shown[:600]}. "
            "Give the command that began them, or another --out"
        )
    if (out / records.MANIFEST).exists():
        return True
    (out / WORK).mkdir(parents=True, exist_ok=True)
    if known is None and first:
        parts.write(out / WORK / BEGUN, json.dumps(facts))
    elif known is None:
        wait("start", (out / WORK / BEGUN).exists)
        return begin(out, facts, first)
    return False


def finished(out: pathlib.Path) -> dict[str, Any]:
    """The manifest of records that are whole, of which nothing but the result is left."""
    found = records.read_manifest(out)
    records.check_shards(out, found)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return found


def wait(what: str, there: Callable[[], bool]) -> None:
    """Until others have made what is not there yet."""
    since, said = time.monotonic(), 0.0
    while not there():
        if (waited := time.monotonic() - since) > said:
            log.info(
                "waiting for the %s of other machines, %s so far", what, progress.clock(waited)
            )
            said = waited + progress.LOG
        time.sleep(POLL)


class Team:
    """``workers`` processes that know the job and start when there is work; 0: this one does it all."""

    def __init__(self, job: Job, workers: int):
        self._job, self._workers = job, workers
        self._context = multiprocessing.get_context("spawn")
        self._pool: ProcessPoolExecutor | None = None
        self.counts = self._context.Array("q", 3)

    def leave(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def work(self, tasks: dict[int, Task], told: progress.Progress, done: Callable) -> None:
        """Do all ``tasks``; ``done(key)`` says whether one has been done."""
        if not self._workers or not tasks:
            for make, rest in tasks.values():
                make(self._job, *rest, tell=told.tell)
            return
        if self._pool is None:
            self._pool = self._started(self._workers)
        try:
            for future in [self._pool.submit(task, make, rest) for make, rest in tasks.values()]:
                future.result()
        except BrokenProcessPool:
            log.warning("a process was killed: what it did is done again, one by one")
            self.leave()
            for key, (make, rest) in tasks.items():
                if not done(key):
                    self._alone(make, rest)

    def _alone(self, make: Callable, rest: tuple) -> None:
        """Do one task in a process of its own, and without the items that kill it.

        An item is passed over after it has killed two processes. UserError where the task gets no
        further though it has been: then it is no picture that does it.
        """
        deaths: dict[int, int] = {}
        while True:
            skip = tuple(i for i, times in deaths.items() if times > 1)
            own = (*rest, skip) if make is parts.make else rest
            try:
                with self._started(1) as pool:
                    return pool.submit(task, make, own).result()
            except BrokenProcessPool as error:
                at = parts.last(self._job, rest[0]) if make is parts.make else None
                if at is None or deaths.get(at, 0) > 1:
                    raise UserError(
                        "a process that prepares records is killed again and again: is there too "
                        "little memory? Give fewer --workers, and the same command goes on"
                    ) from error
                deaths[at] = deaths.get(at, 0) + 1

    def _started(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, self._context, enter, (self._job, self.counts))


_here: dict[str, Any] = {}


def enter(job: Job, counts: Any) -> None:
    """In a new process: what all tasks share."""
    follow()
    _here.update(job=job, counts=counts)


def task(make: Callable, rest: tuple) -> None:
    """In such a process: one task."""
    make(_here["job"], *rest, tell=lambda *n: progress.tell(_here["counts"], *n))
