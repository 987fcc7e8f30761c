"""Large arrays are pickled as the name of a file, which every process that reads data maps.

A reading process is sent the whole split. Copying an array of gigabytes into each would exhaust memory,
so the array travels by name: that of the file that it is mapped from, or of a temporary file, written
once, that lives as long as the array. All processes then share one copy in memory.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

SMALL = 2**16  # bytes up to which an array is pickled itself
_written: dict[int, InFile] = {}  # by the id of an array that is alive


@dataclasses.dataclass(frozen=True)
class InFile:
    """The place of an array: a file, the offset of its first byte, its dtype and shape."""

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def map(self) -> np.ndarray:
        """The array, read-only; only the parts that are used are loaded into memory."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


class Travels:
    """A base class of dataclasses whose large arrays are pickled as the name of a file."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: _sent(v) for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            arrived = value.map() if isinstance(value, InFile) else value
            object.__setattr__(self, name, arrived)  # the dataclass is frozen


@dataclasses.dataclass(frozen=True, eq=False)
class Names(Travels):
    """Many strings in two arrays, which take little more memory than their bytes."""

    text: np.ndarray  # uint8, all strings joined
    ends: np.ndarray  # int64, where each string ends

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """The strings as the file system encodes them."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.text[start : self.ends[i]].tobytes())


def _sent(value: Any) -> Any:
    """``value``, or where to find it if it is a large array."""
    if not isinstance(value, np.ndarray) or value.nbytes <= SMALL or value.dtype.hasobject:
        return value
    return _mapped(value) or _written_to_file(value)


def _mapped(array: np.ndarray) -> InFile | None:
    """The place in the file that an array, or the whole that it is a part of, is mapped from."""
    root = array
    while isinstance(root.base, np.memmap):
        root = root.base
    known = isinstance(root, np.memmap) and root.filename is not None and root.mode != "c"
    if not known or not array.flags.c_contiguous or not np.may_share_memory(array, root):
        return None
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return InFile(str(root.filename), offset, array.dtype.str, array.shape)


def _written_to_file(array: np.ndarray) -> InFile:
    key = id(array)
    if key not in _written:
        handle, path = tempfile.mkstemp(prefix="dit-data-")
        weakref.finalize(array, _forget, key, path, os.getpid())  # at the latest when Python ends
        with os.fdopen(handle, "wb") as file:
            np.ascontiguousarray(array).tofile(file)
        _written[key] = InFile(path, 0, array.dtype.str, array.shape)
    return _written[key]


def _forget(key: int, path: str, process: int) -> None:
    if os.getpid() == process:  # not in a fork of it
        _written.pop(key, None)
        os.unlink(path)
