"""Where a run is kept: a directory, or a place in a Google Cloud Storage bucket (``gs://``).

Only this package knows about buckets. The others hold a ``Place``: a ``pathlib.Path``, or a
``BucketPath`` with the same methods. They call this package for what differs: writing a file atomically
(``write``), writing files that grow (``growing.Growing``), reserving a place for one job
(``lease.hold``), and the path that Orbax takes. The libraries for buckets are the extra ``gcs``.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from typing import Any

from dit.storage.bucket import BucketPath, StorageError, TakenError
from dit.types import UserError

__all__ = [
    "BucketPath",
    "Place",
    "StorageError",
    "TakenError",
    "check",
    "failures",
    "for_orbax",
    "local",
    "place",
    "workdir",
    "write",
]

Place = pathlib.Path | BucketPath
LONGEST = (
    3800  # bytes of a workdir's path: the system's 4096, less the longest path inside a checkpoint
)


def place(address: str | os.PathLike | BucketPath) -> Place:
    """The place at this address; UserError for an unknown kind of address."""
    if isinstance(address, BucketPath):
        return address
    text = _given(address)
    if "://" not in text:
        return pathlib.Path(text)
    if not text.startswith("gs://"):
        raise UserError(
            f"got {text!r}; expected a directory, or gs://BUCKET/PATH: mount other storage and give the "
            "directory where it is mounted"
        )
    _require_libraries()
    return BucketPath(text)


def workdir(address: str | os.PathLike | BucketPath) -> Place:
    """The place of a run, which need not exist yet; a leading ``~`` is the home directory.

    Raises UserError at once for a name under which no checkpoint could be written.
    """
    there = place(address)
    if isinstance(there, BucketPath):
        return there
    text = os.fspath(address)
    if text == "~" or text.startswith("~/"):
        there = there.expanduser()
    whole = str(there.absolute())
    why = None
    if "\\" in whole:
        why = "holds a backslash, which the library that writes arrays takes for a slash"
    elif "\0" in whole or _undecodable(whole):
        why = "is not text in UTF-8"
    elif any(part.endswith(":") for part in there.absolute().parts):
        why = "has a part that ends in a colon, as the scheme of an address does"
    elif len(os.fsencode(whole)) > LONGEST:
        why = f"is too long: {len(os.fsencode(whole))} bytes, and at most {LONGEST} will do"
    if why:
        raise UserError(f"no run can be kept in {whole[:200]!r}: its path {why}. Give another one")
    return there


def _undecodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def local(address: str | os.PathLike) -> pathlib.Path:
    """A local directory, where nothing else will do; UserError for the address of a bucket."""
    if "://" in _given(address):
        raise UserError(
            f"got {os.fspath(address)!r}; expected a directory: mount the bucket (gcsfuse, for one) and "
            "give the directory where it is mounted"
        )
    return pathlib.Path(address)


def _given(address: str | os.PathLike) -> str:
    """The text of an address; UserError for an empty one, which would mean the current directory."""
    text = os.fspath(address)
    if not text.strip():
        raise UserError(f"got the path {text!r}; expected the name of a directory or file")
    return text


def write(file: Place, data: str | bytes) -> None:
    """Write a file atomically: others see either the old content or all of the new."""
    data = data.encode() if isinstance(data, str) else data
    if isinstance(file, BucketPath):
        file.put(data)
        return
    fresh = file.with_suffix(".tmp")
    fresh.write_bytes(data)
    fresh.replace(file)


def for_orbax(folder: Place) -> Any:
    """The path of ``folder`` in the form that Orbax takes."""
    if not isinstance(folder, BucketPath):
        from dit.storage.orbax_path import LocalPath

        return LocalPath(folder.absolute())
    import fsspec
    from etils import epath

    # Other processes, and libraries other than gcsfs, write here too: it must not trust its cache.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    os.environ.setdefault("EPATH_USE_TF", "false")  # whether TensorFlow is installed or not
    return epath.Path(str(folder))


def check(address: str | os.PathLike | BucketPath) -> None:
    """StorageError if a bucket does not answer, in which case unreadable data are not damaged."""
    there = place(address)
    if isinstance(there, BucketPath):
        there.is_dir()


def failures(there: Place) -> tuple[type[Exception], ...]:
    """The exceptions that a library may raise if this place cannot be written."""
    if not isinstance(there, BucketPath):
        return (OSError,)
    import gcsfs.retry
    import requests
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    foreign = (GoogleAPIError, GoogleAuthError, requests.RequestException)
    return (OSError, gcsfs.retry.HttpError, *foreign)


def _require_libraries() -> None:
    for name in ("google.cloud.storage", "gcsfs"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"gs:// needs libraries that are not installed ({error}): pip install 'dit-jax[gcs]'"
            ) from error
