"""From raw files to records: what an input is, and the limits of what is believed of a file.

An ``Input`` lists its ``Part``s in an order that depends on the files alone, and reads one part at a
time. A part gives an ``Item`` for each picture, and a ``Broken`` for whatever has a name but cannot be
used. So parts are read by any number of processes, and what comes of one does not depend on the others.

Stages: ``parts`` (each part becomes a file of finished records and a table), ``plan`` (which records go
into which shard: splits, sizes, copies) and ``shards`` (the records are copied there). Each stage leaves
a mark when a file is whole, so a run that was killed goes on from there.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

MOST_BYTES = 256 * 2**20  # of one picture's file, or of a video's in a tar
MOST_VIDEO = 16 * 2**30  # bytes of a video's file, which is never in memory as a whole
MOST_TEXT = 2**20  # bytes of one file of captions, or of one line in a file of many
MOST_PIXELS = 2**26  # of one picture; RGBA then takes 256 MiB, and what is made of it as much again


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of an input: ``what`` its ``read`` takes, and how many bytes that is, about."""

    what: Any
    weight: int


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture or a video: its ``name``, its file or its pixels, and what is said of it.

    ``picture``: the bytes of the file, its place, or pixels. ``captions``: bytes are a text file's, a
    caption a line. ``held_out``: the split, if the input has splits of its own. ``weight``: bytes of
    the part that are done with it.
    """

    name: str
    picture: bytes | pathlib.Path | np.ndarray
    captions: bytes | tuple[str, ...] = ()
    label: int | None = None
    held_out: bool | None = None
    weight: int = 0


@dataclasses.dataclass(frozen=True)
class Broken:
    """What cannot be used, and why."""

    name: str
    reason: str


@runtime_checkable
class Input(Protocol):
    """``facts`` (JSON-able) change with the files. ``classes``: names, or None where the labels say."""

    parts: list[Part]
    facts: dict[str, Any]
    classes: tuple[str, ...] | None

    def read(self, what: Any) -> Iterator[Item | Broken]: ...
