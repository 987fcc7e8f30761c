"""Which of several sizes each picture of a folder is nearest to, from the headers of the files.

Headers are read once: what they say is kept in the cache directory of the user (``XDG_CACHE_HOME``),
under a name that changes with the files.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dit.config import fingerprint
from dit.data import pictures

THREADS, CHUNK = 16, 4096  # headers read, and files waiting for it, at once
Size = tuple[int, int]  # height, width


def nearest(
    root: pathlib.Path, files: Sequence[tuple[str, int]], sizes: Sequence[Size]
) -> np.ndarray:
    """The index of the size with the nearest aspect ratio, for each of the ``files`` (name, bytes).

    Nearest in the logarithm, so that 2 : 1 is as far from square as 1 : 2. Raises UserError, naming the
    file, for one that cannot be read.
    """
    if len(sizes) == 1:
        return np.zeros(len(files), np.int64)
    return closest(upright_sizes(root, files), sizes)


def closest(found: np.ndarray, sizes: Sequence[Size]) -> np.ndarray:
    """The index of the size with the nearest aspect ratio, for each (height, width) of ``found``."""
    found, given = (np.log(np.asarray(each, np.float64)) for each in (found, sizes))
    ratio, wanted = found[:, 0] - found[:, 1], given[:, 0] - given[:, 1]
    return np.abs(ratio[:, None] - wanted).argmin(1)


def upright_sizes(root: pathlib.Path, files: Sequence[tuple[str, int]]) -> np.ndarray:
    """Height and width of each picture, ``(n, 2)``: from the cache, or else from the files."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    name = fingerprint({"root": str(root.resolve()), "files": [list(file) for file in files]})
    kept = pathlib.Path(base) / "dit" / f"sizes-{name}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        known = np.load(kept)
        if known.shape == (len(files), 2):
            return known
    found = np.empty((len(files), 2), np.int32)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(files), CHUNK):
            part = files[start : start + CHUNK]
            paths = [os.path.join(root, file) for file, _ in part]
            found[start : start + len(part)] = list(pool.map(pictures.upright_size, paths))
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=kept.parent, suffix=".npy")
        with os.fdopen(handle, "wb") as file:
            np.save(file, found)
        os.replace(unfinished, kept)
    return found
