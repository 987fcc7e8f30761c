"""Webdataset tars: consecutive members with one name but for their suffix make an example.

``000.jpg``, or ``000.mp4`` where videos are asked for, ``000.txt`` (a caption a line), ``000.json``
(``caption`` or ``captions``, ``label``) and ``000.cls`` (a number) belong together; other members are
passed over. A part is one tar, plain or compressed (gz, bz2, xz).

The tars may come from anywhere, so they are read with Python's own ``tarfile`` over a file that gives no
more than is asked of it within bounds, and not with the ``webdataset`` package, which believes every
size in a header. Nothing is written to disk: a member's name is a name and never a path. Members that
are too large, links, devices and names that lead out of the tar are listed as broken.
"""

from __future__ import annotations

import bz2
import dataclasses
import glob
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from dit.config import fingerprint
from dit.data.prepare import MOST_BYTES, MOST_TEXT, Broken, Item, Part
from dit.data.prepare.convert import suffixes
from dit.data.prepare.said import fields_of, label_of
from dit.types import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
MOST_SKIPPED = 16 * MOST_BYTES  # of a compressed tar at a stretch: it is decompressed for nothing
TEXTS, NUMBERS = (".txt", ".caption"), (".cls",)


@dataclasses.dataclass(frozen=True)
class Tars:
    """``what`` of a part: the name of a tar below ``root``."""

    root: str
    parts: list[Part] = dataclasses.field(repr=False)
    facts: dict[str, Any]
    videos: bool
    classes: None = None

    def read(self, what: str) -> Iterator[Item | Broken]:
        try:
            with open(os.path.join(self.root, what), "rb") as raw:
                known = suffixes(self.videos)
                for key, members in grouped(what, raw, known):
                    name = f"{what}/{key}"
                    yield key if isinstance(key, Broken) else example(name, members, known)
        except MemoryError:
            raise
        except Exception as error:  # of a reader of files that may be damaged
            yield Broken(
                what, f"the rest of it cannot be read: {str(error) or type(error).__name__}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "parts": []}


def build(*, path: str, videos: bool = False) -> Tars:
    """The tars of a directory, in any depth, or those of a pattern such as ``DIR/*.tar``.

    ``videos``: what they hold, instead of pictures.
    """
    path = os.path.expanduser(path)
    inside = glob.glob(os.path.join(glob.escape(path), "**"), recursive=True)
    found = sorted(p for p in inside if p.endswith(SUFFIXES)) if os.path.isdir(path) else None
    found = sorted(glob.glob(path, recursive=True)) if found is None else found
    found = [p for p in found if os.path.isfile(p)]
    if not found:
        raise UserError(
            f"no tars in {path!r}; expected a directory of {', '.join(SUFFIXES)}, or a pattern"
        )
    root = os.path.dirname(found[0]) if len(found) == 1 else os.path.commonpath(found)
    parts = [Part(os.path.relpath(p, root), os.path.getsize(p)) for p in found]
    content = fingerprint({"files": [[part.what, part.weight] for part in parts]})
    return Tars(root, parts, {"files": len(parts), "content": content}, videos)


Members = dict[str, bytes | Broken]  # by suffix


def grouped(
    name: str, raw: io.BufferedIOBase, known: frozenset[str]
) -> Iterator[tuple[str | Broken, Members]]:
    """``(key, its members)`` of each example of a tar, and ``(Broken, {})`` of what is not one.

    ``known``: the suffixes of what is to become records.
    """
    start = raw.read(8)
    raw.seek(0)
    opener = next((o for magic, o in MAGIC.items() if start.startswith(magic)), None)
    file = Bounded(raw if opener is None else opener(raw, "rb"), opener is not None)
    key, members = None, {}
    failed = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while True:
            try:
                member = tar.next()
                tar.members = []  # which tarfile would keep
                if member is None:
                    break
                found = classified(tar, member, known)
            except MemoryError:
                raise
            except Exception as error:
                failed = error
                break
            if found is None:
                continue
            if isinstance(found, Broken):
                yield Broken(f"{name}/{found.name}", found.reason), {}
                continue
            own, suffix, content = found
            if own != key and key is not None:
                yield key, members
                members = {}
            key = own
            members.setdefault(suffix, content)
    if key is not None and failed is None:
        yield key, members
    elif key is not None:  # more may have been said of it
        yield Broken(f"{name}/{key}", "it is where the tar is damaged"), {}
    if failed is not None:
        raise failed


def classified(
    tar: tarfile.TarFile, member: tarfile.TarInfo, known: frozenset[str]
) -> tuple[str, str, bytes | Broken] | Broken | None:
    """``(key, suffix, content)`` of a member; None for one of no use, Broken for one of no good."""
    name = member.name.encode("utf-8", "backslashreplace").decode()
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return Broken(name, "it is a link, a device or has holes; expected a regular file")
    if not name:
        return Broken("(no name)", "it has no name")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return Broken(name, "its name leads out of the tar")
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    suffix = f".{suffix.lower()}"
    short = "." + suffix.rpartition(".")[2]
    if not stem or not dot:
        return None
    text = short in (*TEXTS, *NUMBERS, ".json")
    if not text and short not in known:
        return None
    most = MOST_TEXT if text else MOST_BYTES
    key = f"{folder}{slash}{stem}"
    if member.size > most:
        return key, short, Broken(name, f"it has {member.size} bytes; expected at most {most}")
    content = tar.extractfile(member).read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{name} ends after {len(content)} of {member.size} bytes")
    return key, short, content


def example(name: str, members: Members, known: frozenset[str]) -> Item | Broken:
    """What the members of one name make together."""
    drawn = [suffix for suffix in members if suffix in known]
    wrong = next((m for m in members.values() if isinstance(m, Broken)), None)
    if wrong is not None:
        return Broken(name, f"{wrong.name}: {wrong.reason}")
    if not drawn:
        return Broken(name, f"it has {', '.join(members)} and no picture of a kind asked for")
    captions: bytes | tuple[str, ...] = ()
    label = None
    try:
        if ".json" in members:
            captions, label, _ = fields_of(members[".json"])
        for suffix in TEXTS:
            captions = members.get(suffix, captions)
        for suffix in NUMBERS:
            label = label_of(members[suffix]) if suffix in members else label
    except ValueError as error:
        return Broken(name, str(error))
    weight = sum(512 + len(content) for content in members.values())
    return Item(name, members[drawn[0]], captions, label, weight=weight)


@dataclasses.dataclass
class Bounded:
    """A file that is read forward only, of which no more than ``MOST_BYTES`` are given at once."""

    file: io.BufferedIOBase
    packed: bool

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; ReadError for more than any part of a tar should have."""
        if not 0 <= size <= MOST_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes; expected at most {MOST_BYTES}")
        return self.file.read(size)

    def tell(self) -> int:
        """See ``io``."""
        return self.file.tell()

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go on from ``position``; of a compressed tar, no further than ``MOST_SKIPPED``."""
        if whence == io.SEEK_SET and self.packed:
            ahead = position - self.file.tell()
            if ahead > MOST_SKIPPED:
                raise tarfile.ReadError(f"a member of {ahead} bytes is not decompressed to skip it")
        return self.file.seek(position, whence)
