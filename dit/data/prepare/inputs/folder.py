"""A folder of pictures or videos: sub-folders are classes, texts lie beside or in ``captions.jsonl``.

``a/b.txt`` holds the captions of ``a/b.jpg``, one a line. A line of ``captions.jsonl``, at the top, is
``{"file": "a/b.jpg", "caption": "..."}``, or ``"captions": [...]``, and perhaps ``"label": 3``. A file
that is named several times has all captions. Where there are captions, folders are no classes unless
``labels=true``; where ``captions.jsonl`` has labels, it alone gives them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dit.config import fingerprint
from dit.data import clips
from dit.data.prepare import MOST_BYTES, MOST_TEXT, MOST_VIDEO, Broken, Item, Part
from dit.data.prepare.convert import suffixes
from dit.data.prepare.said import fields_of
from dit.data.sources.folder import tell_classes, tell_skipped, walk
from dit.types import UserError

FILES = 256  # in a part
LISTED = "captions.jsonl"
Said = tuple[tuple[str, ...], int | None]  # captions and label


@dataclasses.dataclass(frozen=True)
class Pictures:
    """``what`` of a part: a list of (file, bytes, captions or True for a text beside it, label)."""

    root: str
    parts: list[Part] = dataclasses.field(repr=False)
    facts: dict[str, Any]
    classes: tuple[str, ...] | None
    videos: bool

    def read(self, what: list) -> Iterator[Item | Broken]:
        for each in what:
            yield each if isinstance(each, Broken) else self._item(*each)

    def _item(self, name: str, size: int, captions: Any, label: int | None) -> Item | Broken:
        try:
            if captions is True:
                captions = read(os.path.join(self.root, beside(name)), MOST_TEXT)
            path = os.path.join(self.root, name)
            found = there(path, MOST_VIDEO) if self.videos else read(path, MOST_BYTES)
        except (OSError, ValueError) as error:
            return Broken(name, getattr(error, "strerror", None) or str(error))
        return Item(name, found, captions, label, weight=size)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "parts": []}  # a process is sent one at a time


def build(*, path: str, labels: bool | None = None, videos: bool = False) -> Pictures:
    """The pictures, or else the ``videos``, under ``path``. UserError for a folder without any."""
    kind, known = "videos" if videos else "pictures", suffixes(videos)
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {str(root)!r}: set --source to a folder of {kind}")
    files, texts, others = {}, {}, []
    for name, entry in walk(root):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in known:
            files[name] = entry.stat().st_size
        elif suffix == ".txt":
            texts[name] = entry.stat().st_size
        elif name != LISTED:
            others.append(name)
    tell_skipped(root, others)
    if not files:
        raise UserError(
            f"no {kind} in {str(root)!r}; expected files in {', '.join(sorted(known))}"
            + ("" if videos or not others or not films(others) else ". Of videos, give --frames=N")
        )
    said, broken = listed(root, files, kind[:-1]) if (root / LISTED).exists() else ({}, [])
    with_text = {name for name in files if beside(name) in texts}
    captioned = bool(with_text) or any(captions for captions, _ in said.values())
    numbered = any(label is not None for _, label in said.values())
    folders = {name: name.partition("/")[0] if "/" in name else None for name in files}
    as_classes = (not captioned if labels is None else labels) and not numbered
    loose = next((name for name, folder in folders.items() if folder is None), None)
    classes = sorted(set(folders.values()) - {None}) if as_classes else []
    if classes and loose is not None:
        raise UserError(
            f"{str(root)!r} holds {kind} ({loose!r}, ...) beside folders of {kind} "
            f"({classes[0]!r}, ...): move them into a folder, or give --source=folder:PATH,labels=false"
        )
    if classes:
        tell_classes(root, classes)
    numbers = {folder: i for i, folder in enumerate(classes)}
    rows: list = [*broken]
    for name, size in files.items():
        captions, label = said.get(name, ((), None))
        if classes:
            label = numbers[folders[name]]
        rows.append((name, size, True if name in with_text and not captions else captions, label))
    chunks = [rows[i : i + FILES] for i in range(0, len(rows), FILES)]
    parts = [Part(c, sum(r[1] for r in c if not isinstance(r, Broken))) for c in chunks]
    content = [[n, s] for n, s in [*files.items(), *texts.items()]]
    notes = [[n, list(c), label] for n, (c, label) in said.items()]
    facts = {"files": len(files), "content": fingerprint({"files": content, "said": notes})}
    return Pictures(str(root), parts, facts, tuple(classes) or None, videos)


def beside(name: str) -> str:
    """The name of the file of captions of a picture."""
    return os.path.splitext(name)[0] + ".txt"


def films(names: list[str]) -> bool:
    """Whether there are videos among the files."""
    return any(name.lower().endswith(clips.VIDEOS) for name in names)


def listed(
    root: pathlib.Path, files: dict[str, int], what: str
) -> tuple[dict[str, Said], list[Broken]]:
    """What ``captions.jsonl`` says of each file, and the lines of it that say nothing of any."""
    said: dict[str, Said] = {}
    broken = []
    with open(root / LISTED, "rb") as file:
        number = 0
        while line := file.readline(MOST_TEXT + 2):
            number += 1
            while len(line) > MOST_TEXT and not line.endswith(b"\n"):  # the rest is not kept
                if not (more := file.readline(MOST_TEXT)):
                    break
                line = line[: MOST_TEXT + 1] + more[-1:]
            if not line.strip():
                continue
            try:
                captions, label, fields = fields_of(line)
                name = str(fields.get("file", fields.get("file_name")))
                if name not in files:
                    raise ValueError(f"it names {name[:200]!r}, which is no {what} in the folder")
            except ValueError as error:
                broken.append(Broken(f"{LISTED}:{number}", str(error)))
                continue
            before, known = said.get(name, ((), None))
            said[name] = ((*before, *captions), known if label is None else label)
    return said, broken


def read(path: str, most: int) -> bytes:
    """All bytes of a file; ValueError for one of more than ``most``."""
    with open(path, "rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"it has more than {most} bytes")
    return found


def there(path: str, most: int) -> pathlib.Path:
    """The path of a file; ValueError for one of more than ``most`` bytes."""
    if (size := os.stat(path).st_size) > most:
        raise ValueError(f"it has {size} bytes; expected at most {most}")
    return pathlib.Path(path)
