"""A local path for Orbax, in whose name every character is literal.

Orbax reaches all files through ``etils.epath``. When that lists a directory, it treats brackets, stars
and question marks in the directory's name as wildcards, and a directory ``/gs`` as an address. Orbax
then does not find what it wrote, and every checkpoint is lost.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator

from etils.epath.gpath import PosixGPath


class LocalPath(PosixGPath):
    """A path on this machine, with any name. Paths derived from it are of the same class."""

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[LocalPath]:
        """Matching files and folders in this one; only ``pattern`` may contain wildcards."""
        for name in glob.iglob(pattern, root_dir=str(self)):
            yield self / name
