"""Weights from files that nobody vouches for: ``read(path)`` gives a flat dict of arrays by name.

Of a training checkpoint, with weights under ``ema`` and ``model``, one is chosen: ``ema`` by default.

``.safetensors``: a length (8 bytes), a JSON header and the bytes of the tensors, without gaps; they
stay in the file until they are asked for, one at a time (``Stored``). ``.pt``,
``.pth``, ``.bin``, ``.ckpt``: what ``torch.save`` writes since 1.6, a zip archive of a pickle and of
storages, or what it wrote before, several pickles and then the storages. A pickle is a program; this
one is run by an interpreter that knows the few functions of which tensors are made, and nothing else,
so that it can do no harm. PyTorch is not needed.

Nested dicts come out flat, with dots: ``{"ema": {"w": x}}`` is ``{"ema.w": x}``. What is no tensor (a
training checkpoint's step, arguments, ...) is left out. Every number in a file is checked against the
file's size before memory is reserved for it. The bits are not: neither format has check sums for them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import json
import math
import pathlib
import pickle
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from dit.config import suggest
from dit.interop.mapping import State
from dit.types import UserError

SETS = ("ema", "model")  # of weights in the training checkpoints of the original DiT and its kin
WITHIN = "model.diffusion_model."  # where Stable Diffusion's files have a network: of no such set
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before 1.6
LARGEST_TEXT = 100 * 2**20  # bytes of a header or pickle: names and shapes, no numbers
SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
BAD = (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError)
BAD = (*BAD, OverflowError, MemoryError, RecursionError, NotImplementedError, RuntimeError)
BAD = (*BAD, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)


def read(path: str | pathlib.Path, weights: str | None = "ema") -> State:
    """The arrays of a file, by name; of a training checkpoint those under ``weights``, ``SETS``.

    A file of one set of weights is read as it is, and so is any with None. Raises UserError, naming the
    file, for anything unsound in it, and for a set that is not there.
    """
    if weights is not None and weights not in SETS:
        raise UserError(f"got weights={weights!r}: {suggest(weights, list(SETS))}")
    path = pathlib.Path(path)
    readers = {".safetensors": _safetensors, ".pt": _torch, ".pth": _torch}
    readers |= {".bin": _torch, ".ckpt": _torch}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"got the weights {str(path)!r}; expected a file in {', '.join(readers)}")
    try:
        state = reader(path)
    except BAD as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the weights {str(path)!r}: {what[:300]}") from error
    if not state:
        raise UserError(f"there are no tensors in {str(path)!r}")
    return state if weights is None else _chosen(state, weights, path)


def _chosen(state: State, weights: str, path: pathlib.Path) -> State:
    """One set of weights, without its prefix, where there are several; else all there is."""
    there = {n.partition(".")[0] for n in state if not n.startswith(WITHIN)}.intersection(SETS)
    if not there:
        return state
    prefix = f"{weights}."
    found = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
    if not found:
        raise UserError(
            f"no weights {weights!r} in {str(path)!r}, a training checkpoint with "
            f"{' and '.join(sorted(there))}; read(path, weights=...) chooses"
        )
    return found


def metadata(path: pathlib.Path) -> dict[str, str]:
    """The metadata in the header of a ``.safetensors`` file that ``read`` accepts; of another, none."""
    if path.suffix.lower() != ".safetensors":
        return {}
    found = _header(path)[0].get("__metadata__", {})
    return {k: v for k, v in found.items() if isinstance(v, str)}


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The header of a file and its length."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LARGEST_TEXT):
            raise ValueError(f"its header claims {length} bytes; the file has {size}")
        return json.loads(file.read(length), object_pairs_hook=_unique), length


def _safetensors(path: pathlib.Path) -> State:
    size, (header, length) = path.stat().st_size, _header(path)
    header.pop("__metadata__", None)
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"{name!r} begins at byte {begin}; expected {end}")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"it has {size} bytes; its header says {8 + length + end}")
    return {
        name: Stored(path, dtype, shape, 8 + length + begin)
        for name, (dtype, shape, begin, _) in places.items()
    }


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, which NumPy takes for an array: mapped anew, and let go, at each use."""

    path: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.size:
            return np.zeros(self.shape, dtype or self.dtype)
        data = np.memmap(self.path, np.uint8, "r", self.offset, (self.nbytes,))
        array = np.asarray(data).view(self.dtype).reshape(self.shape)
        return np.array(array, dtype, copy=copy)


def _place(name: str, entry: Mapping[str, Any]) -> tuple[np.dtype, tuple[int, ...], int, int]:
    dtype, shape = np.dtype(SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
    begin, stop = entry["data_offsets"]
    _whole(*shape, begin, stop)
    if stop - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} has {stop - begin} bytes, which are not {dtype} {shape}")
    return dtype, shape, begin, stop


def _torch(path: pathlib.Path) -> State:
    if not zipfile.is_zipfile(path):
        return _old_torch(path)
    with zipfile.ZipFile(path) as archive:
        pickles = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_TEXT:
            raise ValueError("it is no archive of torch.save with one data.pkl of a fair size")
        root = pickles[0].filename.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        text = io.BytesIO(archive.read(pickles[0]))
        content = _Tensors(text, functools.partial(_storage, archive, root)).load()
    return dict(_flat(content, ""))


def _old_torch(path: pathlib.Path) -> State:
    """Magic number, version, machine, content and the storages' keys, a pickle each; then their bytes.

    Before a storage stands its number of elements. All tensors are views of storages that are filled
    at the end.
    """
    size, storages = path.stat().st_size, {}

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        _whole(count)
        room = size - sum(x.nbytes for x in storages.values())
        if key not in storages and count * dtype.itemsize > room:
            raise ValueError(f"storage {key} claims {count} {dtype}; the file has {size} bytes")
        found = storages.setdefault(key, np.zeros(count if key not in storages else 0, dtype))
        if (len(found), found.dtype) != (count, dtype):
            raise ValueError(f"storage {key} is claimed to be of two sizes or types")
        return found

    with open(path, "rb") as file:
        magic, version, machine, content, keys = (_Tensors(file, storage).load() for _ in range(5))
        if (magic, version) != (OLD_MAGIC, OLD_VERSION) or not machine["little_endian"]:
            raise ValueError("it is nothing that torch.save wrote on a little-endian machine")
        if sorted(keys) != sorted(storages):
            raise ValueError("its storages are not those that its tensors are in")
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            read = file.readinto(storages[key].view(np.uint8))
            if count != len(storages[key]) or read != storages[key].nbytes:
                raise ValueError(f"storage {key} ends after {read} bytes or is of another size")
        if file.read(1):
            raise ValueError("there is something after the last storage")
    return dict(_flat(content, ""))


class _Held:
    """An array in the hands of a pickle, which may pass it on but not change it."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray):
        self.array = array

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it changes a tensor after it has made it: not run")


class _Tensors(pickle.Unpickler):
    """Runs the pickle of a state dict: knows tensors and dicts, and imports nothing."""

    def __init__(
        self, file: io.BufferedIOBase, storage: Callable[[str, np.dtype, int], np.ndarray]
    ):
        super().__init__(file)
        self._storage = storage
        self._known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): types.SimpleNamespace,  # a training script's arguments
            ("torch", "Size"): tuple,
            # Functions of this reader alone: a pickle can set attributes of what it is given.
            ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _Held(_tensor(*given)),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            **{("torch", kind): np.dtype(dtype) for kind, dtype in STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise ValueError(f"it calls {module}.{name}, which no state dict needs: not run")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Held:
        kind, dtype, key, _, count, *view = pid
        if (
            kind != "storage"
            or not isinstance(dtype, np.dtype)
            or not str(key).isdecimal()
            or any(view)
        ):
            raise ValueError(f"it refers to {pid!r}, which is no storage")
        return _Held(self._storage(str(key), dtype, count))


def _storage(
    archive: zipfile.ZipFile, root: str, key: str, dtype: np.dtype, count: int
) -> np.ndarray:
    _whole(count)
    info = archive.getinfo(f"{root}data/{key}")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
        raise ValueError(f"storage {key} has {info.file_size} bytes, which are not {count} {dtype}")
    return np.frombuffer(archive.read(info), dtype)


def _tensor(held: _Held, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """A view of a storage, inside of it and not larger."""
    _whole(offset, *shape, *strides)
    storage, count = held.array, math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if storage.ndim != 1 or count > storage.size or (count and last >= storage.size):
        raise ValueError(f"a tensor of shape {tuple(shape)} is not within what it is stored in")
    steps = [s * storage.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _flat(tree: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, _Held):
        yield prefix, tree.array
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("its header names a tensor twice")
    return dict(pairs)


def _whole(*numbers: Any) -> None:
    for n in numbers:
        if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 2**63:
            raise ValueError(f"it holds {n!r} where a size or place is expected")
