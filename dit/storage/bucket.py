"""A place in a Google Cloud Storage bucket, with the methods of ``pathlib.Path`` that runs need.

A bucket holds objects and no directories: "a/b" is in the "folder" "a" only by its name. Objects are
written atomically, and each version has a number, its generation. A write may name the generation that
it expects to replace (0: none). If another one is there it fails with TakenError, so of two writers only
one succeeds. Objects cannot grow; ``append`` sends only the new data and has the service join it to the
object.

Credentials are Google's defaults (``gcloud auth application-default login``, or those of the machine).
``STORAGE_EMULATOR_HOST`` names another server, which needs none.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import pathlib
import re
import secrets
import types
from collections.abc import Iterator
from typing import Any

from dit.types import UserError, first_line


class StorageError(OSError):
    """The bucket does not answer, does not exist, or refuses access."""


class TakenError(StorageError):
    """The object has another generation than expected: somebody else has written it."""


class BucketPath:
    """``gs://BUCKET/KEY``. Not an ``os.PathLike``, so that it cannot pass for a local path."""

    def __init__(self, address: str):
        bucket, _, key = address.removeprefix("gs://").partition("/")
        if not bucket or bucket in (".", ".."):
            raise UserError(f"got {address!r}; expected gs://BUCKET/PATH")
        self.bucket = bucket
        self.key = "/".join(part for part in key.split("/") if part)

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.key}"

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: BucketPath) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(f"{self}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The suffix, as of a file name."""
        return pathlib.PurePosixPath(self.name).suffix

    @property
    def parent(self) -> BucketPath:
        """All but the last part."""
        return BucketPath(f"gs://{self.bucket}/{self.key.rpartition('/')[0]}")

    def with_name(self, name: str) -> BucketPath:
        """A sibling with another name."""
        return self.parent / name

    # Looking

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self.look() is not None

    def is_dir(self) -> bool:
        """Whether there are objects under this name."""
        with _errors(self):
            return any(
                True for _ in _client().list_blobs(self.bucket, prefix=self._prefix, max_results=1)
            )

    def exists(self) -> bool:
        """Whether there is either."""
        return self.is_file() or self.is_dir()

    def look(self) -> tuple[int, int] | None:
        """The generation and size of the object, or None if there is none."""
        with _errors(self):
            blob = self._bucket().get_blob(self.key)
        return None if blob is None else (blob.generation, blob.size)

    def stat(self) -> types.SimpleNamespace:
        """``st_size`` of an object; FileNotFoundError if there is none."""
        found = self.look()
        if found is None:
            raise FileNotFoundError(f"no object {self}")
        return types.SimpleNamespace(st_size=found[1])

    def glob(self, pattern: str) -> list[BucketPath]:
        """Matching objects and folders; the last part of ``pattern`` may contain wildcards."""
        folder, _, last = pattern.rpartition("/")
        base = self / folder if folder else self
        prefix = base._prefix
        start = prefix + re.split(r"[*?\[]", last)[0]
        with _errors(self):
            listed = _client().list_blobs(self.bucket, prefix=start, delimiter="/")
            keys = [blob.name for blob in listed] + list(listed.prefixes)
        names = {key.removeprefix(prefix).rstrip("/") for key in keys}
        return [base / name for name in sorted(names) if name and fnmatch.fnmatchcase(name, last)]

    # Reading

    def read_bytes(self) -> bytes:
        """The whole object; FileNotFoundError if there is none."""
        return self.read()[0]

    def read_text(self) -> str:
        """The same as text."""
        return self.read_bytes().decode()

    def read(self, start: int = 0) -> tuple[bytes, int]:
        """The object from byte ``start`` on, and its generation."""
        while True:
            found = self.look()
            if found is None:
                raise FileNotFoundError(f"no object {self}")
            if start >= found[1]:
                return b"", found[0]
            blob = self._bucket().blob(self.key)
            with contextlib.suppress(TakenError, FileNotFoundError), _errors(self):
                wanted = {"if_generation_match": found[0], "start": start or None}
                return blob.download_as_bytes(**wanted), found[0]

    # Writing

    def mkdir(self, **_: bool) -> None:
        """Does nothing: a folder exists as soon as something is in it."""

    def write_bytes(self, data: bytes) -> None:
        """Write the whole object."""
        self.put(data)

    def write_text(self, text: str) -> None:
        """The same for text."""
        self.put(text.encode())

    def put(self, data: bytes, generation: int | None = None) -> int:
        """Write the object in place of this ``generation`` (0: none); TakenError if there is another."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        blob = self._bucket().blob(self.key)
        with _errors(self):
            blob.upload_from_string(
                data,
                content_type="application/octet-stream",
                if_generation_match=generation,
                retry=DEFAULT_RETRY,
            )
        return blob.generation

    def append(self, data: bytes) -> None:
        """Append ``data``. Several processes may do so at once; each part is written exactly once."""
        if not data:
            return
        part = self.with_name(f".{self.name}.{secrets.token_hex(8)}")
        part.put(data)
        try:
            while True:
                generation, size = self.look() or (0, 0)
                try:
                    self._join(part, generation)
                    return
                except TakenError:  # by another writer, or by ourselves if the answer was lost
                    if self.look() and self.read(size)[0].startswith(data):
                        return
        finally:
            part.unlink(missing_ok=True)

    def _join(self, part: BucketPath, generation: int) -> None:
        blobs = [self._bucket().blob(p.key) for p in ([self, part] if generation else [part])]
        target = self._bucket().blob(self.key)
        target.content_type = "application/octet-stream"
        with _errors(self):
            target.compose(blobs, if_generation_match=generation)

    def unlink(self, missing_ok: bool = False, generation: int | None = None) -> None:
        """Delete the object, if it has this ``generation``."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        try:
            with _errors(self):
                self._bucket().blob(self.key).delete(
                    if_generation_match=generation, retry=DEFAULT_RETRY
                )
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: BucketPath) -> BucketPath:
        """Move an object, or all objects under this name: the service copies them, then deletes them.

        Objects highest in the tree are deleted first. A checkpoint so loses the file that marks it as
        complete before anything else, and a half-moved one does not count.
        """
        with _errors(self):
            found = list(_client().list_blobs(self.bucket, prefix=self._prefix))
            own = self._bucket().get_blob(self.key)
            blobs = sorted([own] if own else found, key=lambda b: (b.name.count("/"), b.name))
            for blob in blobs:
                copy = target._bucket().blob(target.key + blob.name.removeprefix(self.key))
                token, _, _ = copy.rewrite(blob)
                while token is not None:
                    token, _, _ = copy.rewrite(blob, token=token)
            for blob in blobs:
                blob.delete()
        return target

    replace = rename

    def _bucket(self) -> Any:
        return _client().bucket(self.bucket)

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    try:
        return storage.Client()
    except OSError as error:  # the client asks for a project, which we do not need
        raise StorageError(f"{error} Or set GOOGLE_CLOUD_PROJECT") from error


@contextlib.contextmanager
def _errors(path: BucketPath) -> Iterator[None]:
    """Turn the exceptions of Google's library into file system errors."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except exceptions.PreconditionFailed as error:
        raise TakenError(f"{path} has been written by somebody else") from error
    except exceptions.NotFound as error:
        if "specified bucket" in str(error.message):
            raise StorageError(f"there is no bucket {path.bucket!r} ({path})") from error
        raise FileNotFoundError(f"no object {path}") from error
    except (exceptions.GoogleAPIError, GoogleAuthError, requests.RequestException) as error:
        raise StorageError(f"{path} cannot be reached: {first_line(error)}") from error
