"""Safetensors files, one tensor in memory at a time, in parts with an index where they are large."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dit.interop.files import SAFETENSORS
from dit.interop.views import Region
from dit.types import UserError

NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS.items()}
ALIGN = 8  # bytes


def write(
    out: str,
    stem: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[Region],
    *,
    dtype: Any,
    largest: int,
    metadata: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[pathlib.Path]:
    """Write ``tensors``, whole or in parts and in any order, to ``out``; the files.

    ``out``: a file ``.safetensors``, or a directory, which gets ``stem.safetensors`` or, above
    ``largest`` bytes, ``stem-00001-of-0000N.safetensors`` and ``stem.safetensors.index.json``; and
    ``config.json`` with ``settings``. ``shapes``: of all tensors, by name. Nothing has its name before
    all is written. Raises UserError for what is there already, and for a disk without the room.
    """
    place, kind = pathlib.Path(out).expanduser(), np.dtype(dtype)
    check_free(place)
    whole = place.suffix == ".safetensors"
    folder = place.parent if whole else place
    total = sum(_bytes(shape, kind) for shape in shapes.values())
    check_room(folder, total)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [list(shapes)] if whole else split(shapes, kind, largest)
    names = [place.name if whole else f"{stem}.safetensors"]
    if len(parts) > 1:
        names = [f"{stem}-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    fresh = [folder / f"{name}.tmp" for name in names]
    try:
        _fill(fresh, parts, shapes, tensors, kind, metadata or {})
    except BaseException:
        for file in fresh:
            file.unlink(missing_ok=True)
        raise
    if len(parts) > 1:
        weight_map = {n: name for name, part in zip(names, parts, strict=True) for n in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _json(folder / f"{stem}.safetensors.index.json", index)
    if settings is not None and not whole:
        _json(folder / "config.json", settings)
    return [file.replace(folder / name) for file, name in zip(fresh, names, strict=True)]


def _fill(
    fresh: list[pathlib.Path],
    parts: list[list[str]],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[Region],
    kind: np.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write the tensors into their files."""
    where: dict[str, tuple[pathlib.Path, int]] = {}
    for file, part in zip(fresh, parts, strict=True):
        where |= _begin(file, {name: shapes[name] for name in part}, kind, metadata)
    left = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, x, axis, start in tensors:
        shape = tuple(shapes[name])
        ends = [slice(start, start + n) if i == axis else slice(n) for i, n in enumerate(x.shape)]
        if x.shape != tuple(len(range(n)[s]) for n, s in zip(shape, ends, strict=True)):
            raise ValueError(f"{name} of shape {shape} has no {x.shape} at {start} of axis {axis}")
        file, offset = where[name]
        step = math.prod(shape[axis:]) * kind.itemsize  # from a run of bytes to the next
        offset += start * math.prod(shape[axis + 1 :]) * kind.itemsize
        runs = np.ascontiguousarray(x, kind).reshape(math.prod(x.shape[:axis]), -1)
        with open(file, "r+b") as stream:
            for i, run in enumerate(runs.view(np.uint8)):
                stream.seek(offset + i * step)
                stream.write(run.data)
        left[name] -= x.size
    if wrong := [name for name, size in left.items() if size]:
        raise ValueError(f"too little or too much was given for {sorted(wrong)[:3]}")


def check_free(place: pathlib.Path) -> None:
    """Raise UserError for a file that exists, or a directory with something in it."""
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise UserError(
            f"there is something at {str(place)!r} already; give another --out, or remove it"
        )


def check_room(folder: pathlib.Path, total: int) -> None:
    """Raise UserError unless the disk of a directory, which need not exist, has so many bytes left."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if total > (free := shutil.disk_usage(there).free):
        raise UserError(
            f"{total / 1e9:.3g} GB are to be written in {str(folder)!r}, and its disk has "
            f"{free / 1e9:.3g} GB left; make room, or give another --out or a smaller --dtype"
        )


def split(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, largest: int) -> list[list[str]]:
    """The names in parts of at most ``largest`` bytes, or of one tensor that is larger, in order."""
    parts: list[list[str]] = [[]]
    room = largest
    for name, shape in shapes.items():
        size = _bytes(shape, dtype)
        if parts[-1] and size > room:
            parts.append([])
            room = largest
        parts[-1].append(name)
        room -= size
    return parts


def _begin(
    file: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    metadata: Mapping[str, str],
) -> dict[str, tuple[pathlib.Path, int]]:
    """Write the header of a file of its full size; where each tensor is to be written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end, begins = 0, {}
    for name, shape in shapes.items():
        begins[name], stop = end, end + _bytes(shape, dtype)
        ends = [end, stop]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": ends}
        end = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGN)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return {name: (file, 8 + len(text) + begin) for name, begin in begins.items()}


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _json(file: pathlib.Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
