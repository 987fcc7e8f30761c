"""What samples are compared with: pictures of the data, or a file of pictures or moments.

A file ``.npz`` is read as ADM's (Dhariwal & Nichol 2021): ``arr_0``, pictures of uint8 ``n h w 3``, or
``mu`` and ``sigma`` of InceptionV3's features, and ``mu_s`` and ``sigma_s`` of its map; where both are
there, moments are taken from the file and the rest from the pictures, as ADM's evaluator does. Those of
the data are kept in the workdir, under a name that depends on all that decides them.
"""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import random
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dit import storage
from dit.evaluation import Split
from dit.evaluation.collect import KINDS, Collector, Moments
from dit.evaluation.features import Features
from dit.evaluation.featurise import Featurise, Passing
from dit.evaluation.scores import Key, Need
from dit.parallel import multihost
from dit.parallel.mesh import batch_sharding, batch_shards
from dit.types import UserError

BATCH = 64  # pictures at a time, at least
LIMIT = 50_000  # pictures of the data, where no number is given
SPOT = 16  # of them are read to see whether the data are those that were kept
MOMENTS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
Collected = dict[Key, Collector]


def rows_of(split: Split, limit: int | None) -> list[int]:
    """Which examples of a split are taken: all, or, in order, ``limit`` chosen once and for all."""
    count, most = len(split), limit or LIMIT
    if not count:
        raise UserError("got a split without examples; expected one or more to compare with")
    return (
        list(range(count)) if count <= most else sorted(random.Random(0).sample(range(count), most))
    )


def of_pictures(
    split: Split,
    rows: Sequence[int],
    networks: Sequence[Features],
    needs: Sequence[Need],
    mesh: Mesh,
) -> tuple[Collected, str]:
    """What is collected of these examples, and the digest of their pixels.

    Each process reads the examples that its own devices see. UserError for data that are not uint8.
    """
    shards, where = batch_shards(mesh), batch_sharding(mesh)
    size = -(-min(BATCH, len(rows)) // shards) * shards
    passing = Passing(Featurise(networks, needs, mesh), len(rows))
    first = np.asarray(_picture(split, rows[0]))
    for start in range(0, len(rows), size):
        ids = [rows[min(i, len(rows) - 1)] for i in range(start, start + size)]

        def part(index, ids=ids):
            return np.stack([_picture(split, i) for i in ids[index[0]]])[:, *index[1:]]

        passing.put(jax.make_array_from_callback((size, *first.shape), where, part))
    return passing.collected, passing.digest()


def _picture(split: Split, i: int) -> np.ndarray:
    x = split[i]["x"]
    if x.dtype != np.uint8:
        raise UserError(f"got data of type {x.dtype}; expected uint8 pixels, 0 to 255")
    return x


def of_data(
    split: Split,
    name: str,
    limit: int | None,
    networks: Sequence[Features],
    needs: Sequence[Need],
    mesh: Mesh,
    identity: Mapping[str, Any],
    folder: storage.Place,
) -> tuple[Collected, dict[str, Any]]:
    """What is collected of a split of the data, read from ``folder`` if it was kept; and its protocol.

    ``identity``: what the data are, by the config. All processes must call this.
    """
    rows = rows_of(split, limit)
    spot = hashlib.sha256()
    for i in rows[:: max(1, len(rows) // SPOT)]:
        spot.update(np.ascontiguousarray(_picture(split, i)).tobytes())
    about = {
        "data": dict(identity),
        "split": name,
        "count": len(rows),
        "spot": spot.hexdigest(),
        "networks": [one.protocol for one in networks],
        "needs": sorted("/".join(need.key) for need in needs),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = folder / f"reference-{key}.npz"
    kept = _load(file)
    if multihost.who(kept is None):
        multihost.say(f"making the reference of {len(rows)} pictures, {name}")
        collected, digest = of_pictures(split, rows, networks, needs, mesh)
        if multihost.is_main():
            _save(file, collected, digest)
        kept = collected, digest
    assert kept is not None
    collected, digest = kept
    return collected, {"from": name, "count": len(rows), "hash": digest}


def _save(file: storage.Place, collected: Collected, digest: str) -> None:
    arrays = {"digest": np.array(digest)}
    for key, one in collected.items():
        arrays |= {"/".join((*key, name)): x for name, x in one.arrays().items()}
    data = io.BytesIO()
    np.savez(data, **arrays)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write(file, data.getvalue())
    except OSError as error:  # of a workdir that is only read
        multihost.say(f"the reference is not kept: {error}")


def _load(file: storage.Place) -> tuple[Collected, str] | None:
    """What ``_save`` wrote; None if it is not there, or not whole."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            return parsed(arrays), str(arrays["digest"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def parsed(arrays: Mapping[str, np.ndarray]) -> Collected:
    """The collectors in a file, by their keys."""
    parts: dict[Key, dict[str, np.ndarray]] = {}
    for path in arrays:
        if path.count("/") == 3:
            *key, name = path.split("/")
            parts.setdefault((key[0], key[1], key[2]), {})[name] = arrays[path]
    return {key: KINDS[key[2]].of(found) for key, found in parts.items()}


def of_file(
    path: str, networks: Sequence[Features], needs: Sequence[Need], mesh: Mesh
) -> tuple[Collected, dict[str, Any]]:
    """What is collected of a file, and its protocol; see the module. UserError for what it lacks."""
    file = pathlib.Path(path).expanduser()
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            pictures = _pictures(archive, file) if "arr_0" in names else None
            given = {k: _array(archive, k) for pair in MOMENTS.values() for k in pair if k in names}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read the reference {path!r} ({error}); expected an .npz file with arr_0, or with "
            "mu and sigma"
        ) from error
    collected: Collected = {}
    for need in needs:
        network, output, kind = need.key
        mean, cov = MOMENTS.get(output, ("", ""))
        if kind == "moments" and network.startswith("inception_v3") and {mean, cov} <= given.keys():
            collected[need.key] = _known(path, given[mean], given[cov])
    rest = [need for need in needs if need.key not in collected]
    about = {"from": file.name, "hash": _hash(file)}
    about["moments of the file"] = sorted("/".join(key) for key in collected)
    if rest and pictures is None:
        missing = ", ".join("/".join(need.key[:2]) for need in rest)
        raise UserError(
            f"the reference {path!r} has no pictures (arr_0), which {missing} is to be made of; it has "
            f"{', '.join(sorted(names)) or 'nothing'}"
        )
    if rest:
        made, _ = of_pictures(pictures, range(len(pictures)), networks, rest, mesh)
        collected |= made
        about["count"] = len(pictures)
    return collected, about


def _known(path: str, mean: np.ndarray, cov: np.ndarray) -> Moments:
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(
            f"the reference {path!r} has mu of {mean.shape} and sigma of {cov.shape}; expected (d,) and "
            "(d, d)"
        )
    return Moments.known(mean, cov)


class _Pictures:
    """Pictures of an array, each a clip of one frame."""

    def __init__(self, x: np.ndarray):
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": np.asarray(self._x[i])[None]}


def _header(file: Any, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a member of so many bytes; ValueError for any that are not plain numbers."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran or dtype.hasobject or file.tell() + int(np.prod(shape)) * dtype.itemsize != size:
        raise ValueError("it holds an array that is not of plain numbers, or not whole")
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        shape, dtype = _header(file, info.file_size)
        return np.frombuffer(file.read(), dtype).reshape(shape)


def _pictures(archive: zipfile.ZipFile, file: pathlib.Path) -> _Pictures:
    """``arr_0``, mapped where it is not compressed."""
    info = archive.getinfo("arr_0.npy")
    with archive.open(info) as member:
        shape, dtype = _header(member, info.file_size)
        offset = member.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
        raise ValueError(f"arr_0 is {dtype} {shape}; expected uint8 (n, h, w, 3)")
    if info.compress_type != zipfile.ZIP_STORED:
        return _Pictures(_array(archive, "arr_0"))
    with open(file, "rb") as raw:
        raw.seek(info.header_offset + 26)
        lengths = raw.read(4)
    before = (
        info.header_offset + 30 + sum(int.from_bytes(lengths[k : k + 2], "little") for k in (0, 2))
    )
    return _Pictures(np.memmap(file, np.uint8, "r", before + offset, shape))


def _hash(file: pathlib.Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()[:16]
