"""Parquet files with a column of pictures, as data sets on the Hugging Face Hub have them.

A cell of the column ``image`` is the bytes of a file, or a struct with ``bytes``. ``caption`` is a
column of texts or lists of texts, ``label`` one of whole numbers. A part is one row group. Needs
``pyarrow``.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator
from typing import Any

from dit.config import fingerprint
from dit.data.prepare import MOST_BYTES, Broken, Item, Part
from dit.data.prepare.said import label_of
from dit.types import UserError, first_line

ROWS = 32  # read at once
USUAL = {
    "image": ("image", "jpg", "png", "webp", "bytes"),
    "caption": ("caption", "captions", "text", "TEXT", "txt"),
    "label": ("label", "labels", "cls"),
}


@dataclasses.dataclass(frozen=True)
class Tables:
    """``what`` of a part: (file, row group, its columns), or Broken."""

    root: str
    parts: list[Part] = dataclasses.field(repr=False)
    facts: dict[str, Any]
    classes: None = None

    def read(self, what: tuple[str, int, dict[str, str]] | Broken) -> Iterator[Item | Broken]:
        if isinstance(what, Broken):
            yield what
            return
        import pyarrow.parquet as pq

        name, group, columns = what
        row = 0
        try:
            with pq.ParquetFile(os.path.join(self.root, name)) as file:
                asked = list(columns.values())
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=asked):
                    cells = {what: batch.column(column) for what, column in columns.items()}
                    for i in range(batch.num_rows):
                        yield item(f"{name}/{group}/{row}", {k: c[i] for k, c in cells.items()})
                        row += 1
        except MemoryError:
            raise
        except Exception as error:  # of a reader of files that may be damaged
            yield Broken(
                f"{name}/{group}", f"it cannot be read from row {row}: {first_line(error)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "parts": []}


def item(name: str, cells: dict[str, Any]) -> Item | Broken:
    """The example of a row."""
    try:
        found = cells["image"].as_py()
        found = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(found, bytes) or not found:
            raise ValueError("it has no bytes of a picture")
        if len(found) > MOST_BYTES:
            raise ValueError(f"its picture has {len(found)} bytes; expected at most {MOST_BYTES}")
        captions = cells["caption"].as_py() if "caption" in cells else None
        captions = [captions] if isinstance(captions, str) else captions or []
        if not all(isinstance(caption, str) for caption in captions):
            raise ValueError("its caption is no text")
        label = label_of(cells["label"].as_py()) if "label" in cells else None
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # pyarrow reads texts that are not UTF-8 only when they are asked for
        return Broken(name, str(error) or type(error).__name__)
    return Item(name, found, tuple(captions), label, weight=len(found))


def build(
    *, path: str, image: str | None = None, caption: str | None = None, label: str | None = None
) -> Tables:
    """The files of a directory, in any depth, one file, or a pattern such as ``DIR/*.parquet``.

    ``image``, ``caption``, ``label``: names of columns; by default the usual ones that are there.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("parquet files need pyarrow: pip install 'dit-jax[parquet]'") from error
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        path = os.path.join(glob.escape(path), "**", "*.parquet")
    found = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
    if not found:
        raise UserError(f"no parquet files in {path!r}; expected a directory or a pattern of them")
    root = os.path.dirname(found[0]) if len(found) == 1 else os.path.commonpath(found)
    given = {"image": image, "caption": caption, "label": label}
    parts = []
    for file in found:
        name, size = os.path.relpath(file, root), os.path.getsize(file)
        try:
            with pq.ParquetFile(file) as opened:
                groups, there = opened.num_row_groups, opened.schema_arrow.names
        except Exception as error:  # of a damaged file
            parts.append(Part(Broken(name, f"it cannot be read: {first_line(error)}"), size))
            continue
        columns = columns_of(there, given, name)
        parts += [Part((name, g, columns), size // groups) for g in range(groups)]
    content = fingerprint({"parts": [repr((part.what, part.weight)) for part in parts]})
    return Tables(root, parts, {"files": len(found), "content": content})


def columns_of(there: list[str], given: dict[str, str | None], name: str) -> dict[str, str]:
    """The columns to read; UserError where one that was asked for, or the pictures, are missing."""
    columns = {}
    for what, asked in given.items():
        usual = next((c for c in USUAL[what] if c in there), None)
        column = usual if asked is None else asked
        missing = what == "image" if column is None else column not in there
        if missing:
            raise UserError(
                f"{name!r} has the columns {', '.join(there)} and not {asked or USUAL[what][0]!r}: give "
                f"--source=parquet:PATH,{what}=COLUMN"
            )
        if column is not None:
            columns[what] = column
    return columns
