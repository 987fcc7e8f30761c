"""The second stage: from the tables of all parts, which record goes into which shard.

In the order of the input: records that lack a field which the others have are set aside, and copies if
asked for; the rest is split by id, and each split goes into shards, one size after the other. All of it
follows from the tables, so that every process finds the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dit.data import records
from dit.data.prepare import copies
from dit.data.prepare.parts import Job
from dit.types import UserError

log = logging.getLogger(__name__)
Notes = list[dict[str, str]]  # {"name": ..., "reason": ...}


@dataclasses.dataclass(frozen=True)
class Shard:
    """``runs``: (part, its records) in order."""

    name: str
    split: str
    bucket: int
    runs: list[tuple[int, np.ndarray]]

    @property
    def records(self) -> int:
        """How many there are."""
        return sum(len(rows) for _, rows in self.runs)


@dataclasses.dataclass(frozen=True)
class Plan:
    """``fields`` are those of ``records.features``; ``statistics`` of the training split."""

    shards: list[Shard]
    fields: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    statistics: dict[str, list[float]]
    broken: Notes
    copies: list[dict[str, str]]


class Names:
    """The names of records, from the notes of their parts, of which the last ones are kept."""

    def __init__(self, job: Job, part: np.ndarray, row: np.ndarray):
        self._job, self._part, self._row = job, part, row
        self._notes: tuple[int, list[str]] = (-1, [])

    def __call__(self, i: int) -> str:
        part = int(self._part[i])
        if self._notes[0] != part:
            self._notes = (part, self._job.notes(part)["names"])
        return self._notes[1][self._row[i]]


def make(job: Job, parts: int, encoded: dict[str, Any]) -> Plan:
    """The plan of all records of ``parts`` parts. ``encoded``: fields that encoders add.

    Raises UserError where it would leave a split empty.
    """
    options = job.options
    tables = [job.table(k) for k in range(parts)]
    broken = list(itertools.chain.from_iterable(job.notes(k)["broken"] for k in range(parts)))
    part = np.repeat(np.arange(parts), [len(table) for table in tables])
    row = np.concatenate([np.arange(len(table)) for table in tables])
    table = np.concatenate(tables)
    names = Names(job, part, row)
    if not len(table):
        first = "; ".join(f"{b['name']}: {b['reason']}" for b in broken[:3])
        raise UserError(f"none of the {len(broken)} examples can be used. {first}")
    has = {"label": table["label"] >= 0, "caption": table["captions"] > 0}
    needed = fields_needed(has, options.fields)
    keep = np.ones(len(table), bool)
    for field in needed:
        lacking = keep & ~has[field]
        broken += [
            {"name": names(i), "reason": f"it has no {field}"}
            for i in np.flatnonzero(lacking).tolist()
        ]
        keep &= has[field]
    dropped = []
    if options.drop_copies:
        left = np.flatnonzero(keep)
        kept, found = copies.originals(table["hash"][left], table["colours"][left])
        keep[left[~kept]] = False
        pairs = [(int(left[i]), int(left[of])) for i, of in found.items()]
        original = {of: names(of) for of in sorted({of for _, of in pairs})}
        dropped = [{"name": names(i), "copy_of": original[of]} for i, of in pairs]
    chosen = np.flatnonzero(keep)
    table, part, row = table[chosen], part[chosen], row[chosen]
    options, encoded = without_empty(table, options, encoded)
    held = held_out(table, options.held_out)
    classes = None
    if "label" in needed:
        classes = options.classes or int(table["label"].max()) + 1
        tell_classes(table["label"], classes)
    shards, splits = [], {}
    for split, mine in zip(records.SPLITS, (~held, held), strict=True):
        found = list(filled(table, part, row, np.flatnonzero(mine), options))
        named = enumerate(found)
        shards += [Shard(records.shard_name(split, i, len(found)), split, *s) for i, s in named]
        counts = np.bincount(table["bucket"][mine], minlength=len(options.sizes))
        splits[split] = {"records": int(mine.sum()), "buckets": counts.tolist()}
    fields = {
        "sizes": [list(size) for size in options.sizes],
        "channels": options.channels,
        **options.clips,
        "classes": classes,
        "captions": "caption" in needed,
        **encoded,
    }
    given = encoded.get("latents", fields)
    volumes = [given.get("frames", 1) * height * width for height, width in given["sizes"]]
    return Plan(shards, fields, splits, statistics(table[~held], volumes), broken, dropped)


def without_empty(
    table: np.ndarray, options: Any, encoded: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """``options`` and ``encoded`` without the sizes that no record has, and ``table`` numbered anew."""
    used = np.unique(table["bucket"])
    kept = [options.sizes[i] for i in used]
    for height, width in set(options.sizes) - set(kept):
        log.warning("no record has the size %dx%d: it is left out", height, width)
    table["bucket"] = np.searchsorted(used, table["bucket"])
    if "latents" in encoded:
        latents = [encoded["latents"]["sizes"][i] for i in used]
        encoded = encoded | {"latents": encoded["latents"] | {"sizes": latents}}
    return dataclasses.replace(options, sizes=tuple(kept)), encoded


def fields_needed(has: dict[str, np.ndarray], asked: tuple[str, ...] | None) -> list[str]:
    """The fields that all records are to have: those asked for, or else those that most have."""
    if asked is not None:
        missing = [field for field in asked if not has[field].any()]
        if missing:
            raise UserError(f"no example has a {missing[0]}; leave it out of --fields")
        return list(asked)
    needed = [field for field, there in has.items() if there.mean() >= 0.5]
    for field in set(has) - set(needed):
        if count := int(has[field].sum()):
            log.warning(
                "%d of %d examples have a %s, which is less than half: it is left out. To keep it, and "
                "leave out the others, give --fields=%s",
                *(count, len(has[field]), field, ",".join([*needed, field])),
            )
    return needed


def held_out(table: np.ndarray, fraction: float) -> np.ndarray:
    """Which records are held out: as the input says, or else by id, so that copies are together.

    Where the ids of all happen to be large, the least of them is.
    """
    said = table["held_out"]
    words = table["id"][:, 0].astype(np.uint64) << np.uint64(32) | table["id"][:, 1]
    by_id = words < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    if not (said >= 0).any() and not by_id.any():
        by_id = words == words.min()
    held = np.where(said >= 0, said == 1, by_id)
    if not held.any() or held.all():
        count = int(held.sum())
        raise UserError(
            f"{count} of {len(table)} records are held out; expected some, and some left for training: "
            "give other data or another --held-out"
        )
    return held


def tell_classes(label: np.ndarray, classes: int) -> None:
    """Warn of numbers up to the largest label that no record has: one wrong label makes classes."""
    used = len(np.unique(label))
    if used < classes:
        log.warning(
            "of the %d classes, 0 to %d, %d have no record. If the largest label is a mistake, give "
            "--classes=N: larger ones are then listed as broken",
            *(classes, classes - 1, classes - used),
        )


def filled(
    table: np.ndarray, part: np.ndarray, row: np.ndarray, chosen: np.ndarray, options: Any
) -> Iterator[tuple[int, list[tuple[int, np.ndarray]]]]:
    """``(bucket, runs)`` of each shard that the ``chosen`` records fill, one size after the other."""
    for bucket in range(len(options.sizes)):
        mine = chosen[table["bucket"][chosen] == bucket]
        before = np.cumsum(table["bytes"][mine]) - table["bytes"][mine]
        shard = before // options.shard_bytes
        for piece in np.split(mine, np.flatnonzero(np.diff(shard)) + 1) if len(mine) else ():
            cuts = np.flatnonzero(np.diff(part[piece])) + 1
            yield bucket, [(int(part[run[0]]), row[run]) for run in np.split(piece, cuts)]


def statistics(table: np.ndarray, volumes: Sequence[int]) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 255 or of latents.

    ``volumes``: pixels of an example of each bucket. The sums are rounded once, whatever the order.
    """
    count = int(np.array(volumes)[table["bucket"]].sum())
    mean, square = (
        [math.fsum(column) / count for column in table[name].T] for name in ("sum", "squares")
    )
    spread = [max(q - m * m, 0.0) ** 0.5 for m, q in zip(mean, square, strict=True)]
    return {"mean": mean, "std": spread}
