"""A directory as Orbax takes it: every character of its name stands for itself.

``etils.epath``, through which Orbax reaches all files, takes brackets, stars and question marks in the
name of a directory for wildcards as soon as it lists what is in it, and a directory ``/gs`` for
an address. Orbax then finds nothing to keep of what it wrote, and every checkpoint is lost.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator

from etils.epath.gpath import PosixGPath


class LocalPath(PosixGPath):
    """A path on this machine, of any name. Paths that are made from it are of the same kind."""

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[LocalPath]:
        """Files and folders in this one; only ``pattern`` may hold wildcards."""
        for name in glob.iglob(pattern, root_dir=str(self)):
            yield self / name
