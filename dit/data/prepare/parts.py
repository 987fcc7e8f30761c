"""The first stage: each part of the input becomes a file of finished records and a table of them.

``.work/part-000012.records``, ``.npy`` (the table) and ``.json`` (names, and what is broken), each
written under another name and moved. The ``.json`` comes last: a part that has one is done. What is in
them is a function of the part and the options, so it does not matter who makes them, or how often.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL

from dit.data.prepare import Broken, Input, Item
from dit.data.prepare.convert import Options, made_of
from dit.types import UserError

WORK = ".work"
REASON = 500  # characters kept of one
ADDRESS = re.compile(
    r" at 0x[0-9a-fA-F]+"
)  # where in memory something is: no two runs say the same


@dataclasses.dataclass(frozen=True)
class Job:
    """What is prepared, how, and where to. ``encoded``: whether encoders add to the records."""

    input: Input
    options: Options
    out: pathlib.Path
    encoded: bool = False

    @property
    def raw(self) -> Job:
        """The same before anything is encoded."""
        return dataclasses.replace(self, encoded=False)

    def file(self, part: int, suffix: str) -> pathlib.Path:
        """One of the files of a part."""
        stage = ".encoded" if self.encoded else ""
        return self.out / WORK / f"part-{part:06d}{stage}{suffix}"

    def done(self, part: int) -> bool:
        """Whether the part is there."""
        return self.file(part, ".json").exists()

    def table(self, part: int) -> np.ndarray:
        """What is known of the records of a part."""
        return np.load(self.file(part, ".npy"))

    def notes(self, part: int) -> dict[str, Any]:
        """``names`` of the records of a part, and the ``broken`` ones."""
        return json.loads(self.file(part, ".json").read_text())


def write(path: pathlib.Path, content: bytes | str) -> None:
    """Write a file whole or not at all."""
    unfinished = unfinished_name(path)
    unfinished.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(unfinished, path)


def unfinished_name(path: pathlib.Path) -> pathlib.Path:
    """Where to write what is to be moved to ``path``; of this process alone."""
    work = path.parent if path.parent.name == WORK else path.parent / WORK
    return work / f"{path.name}.{os.uname().nodename}.{os.getpid()}.unfinished"


Tell = Callable[[int, int, int], None]  # bytes of the input, records and broken ones, just done


def make(
    job: Job, part: int, what: Any, weight: int, skip: tuple[int, ...] | None = None, *, tell: Tell
) -> None:
    """Read and convert part number ``part``.

    ``skip``: items that are not to be tried. Where that is given, even if it is empty, ``last`` tells
    which item was the last to be tried.
    """
    job = job.raw
    at = None if skip is None else job.file(part, ".at")
    rows, names, broken = [], [], []
    unfinished = unfinished_name(job.file(part, ".records"))
    writer, counted = None, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd in pictures: as many as there are pictures
        for name, made, advance in converted(job, what, skip or (), at):
            advance = min(advance, weight - counted)
            counted += advance
            tell(advance, int(not isinstance(made, str)), int(isinstance(made, str)))
            if isinstance(made, str):
                broken.append({"name": name, "reason": made[:REASON]})
                continue
            writer = open_writer(unfinished) if writer is None else writer
            writer.write(made[0])
            rows.append(made[1])
            names.append(name)
    if writer is not None:
        writer.close()
        os.replace(unfinished, job.file(part, ".records"))
    table = unfinished_name(job.file(part, ".npy"))
    with open(table, "wb") as file:
        np.save(file, np.array(rows, job.options.table))
    os.replace(table, job.file(part, ".npy"))
    notes = json.dumps({"names": names, "broken": broken})
    write(job.file(part, ".json"), notes)
    tell(weight - counted, 0, 0)


def last(job: Job, part: int) -> int | None:
    """The number of the item that was tried last."""
    at = job.raw.file(part, ".at")
    return int(at.read_text()) if at.exists() else None


def converted(
    job: Job, what: Any, skip: tuple[int, ...], at: pathlib.Path | None
) -> Iterator[tuple[str, tuple[bytes, tuple] | str, int]]:
    """``(name, record and row, bytes read)`` of each item of a part, or the reason why there is none."""
    for i, item in enumerate(job.input.read(what)):
        if at is not None:
            write(at, str(i))
        if i in skip:
            yield printable(item.name), "the process that read it was killed, twice", 0
        elif isinstance(item, Broken):
            yield printable(item.name), item.reason, 0
        else:
            made = attempt(item, job.options)
            for k, each in enumerate([made] if isinstance(made, str) else made):
                number, weight = (f"#{k}", 0) if k else ("", item.weight)
                yield printable(item.name) + number, each, weight


def attempt(item: Item, options: Options) -> list[tuple[bytes, tuple]] | str:
    """Its records and their rows, or why there is none: nothing that an item holds stops the run."""
    try:
        return list(made_of(item, options))
    except MemoryError:
        return "it needs more memory than there is"
    except Exception as error:  # of decoders, on damaged files
        if isinstance(error.__cause__, PIL.UnidentifiedImageError):
            return "it is no picture of a kind that can be read"
        cause = error.__cause__ if isinstance(error, UserError) else None
        return ADDRESS.sub("", str(cause or error)) or type(error).__name__


def printable(name: str) -> str:
    """A name that fits into UTF-8, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def open_writer(path: pathlib.Path) -> Any:
    """A writer of ArrayRecord, of which each record is read by itself."""
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordWriter(str(path), "group_size:1")
