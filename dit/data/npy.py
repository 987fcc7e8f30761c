"""Arrays from .npy and .npz files that nobody vouches for: no pickle is read, no claim is believed.

A header of a few bytes can claim any number of elements, and a small .npz any size. So what the header
says must agree with the size of the file before anything is reserved.
"""

from __future__ import annotations

import io
import math
import pathlib
import tokenize
import zipfile
import zlib

import numpy as np

from dit.types import UserError

MOST_PACKED = 1032  # bytes that deflate can make of one, at most
BAD = (ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)
BAD = (*BAD, zlib.error, NotImplementedError, RuntimeError, MemoryError, OverflowError)  # a zip's

Header = tuple[tuple[int, ...], bool, np.dtype]


def header(file: io.BufferedIOBase) -> Header:
    """``(shape, fortran order, dtype)`` of a .npy file; raises one of ``BAD`` for other files."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def open_npy(path: pathlib.Path, what: str, kinds: str, ranks: tuple[int, ...]) -> np.ndarray:
    """Map a .npy file of a dtype in ``kinds`` and a rank in ``ranks``, together called ``what``.

    Raises UserError for other files, and for one whose length differs from what its header says.
    """
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = header(file)
            start = file.tell()
    except FileNotFoundError as error:
        raise UserError(
            f"no file {str(path)!r}: set data.path to a directory of latents"
        ) from error
    except BAD as error:
        raise UserError(f"{str(path)!r} is not a .npy file ({error})") from error
    if dtype.kind not in kinds or len(shape) not in ranks or 0 in shape or fortran:
        raise UserError(f"{str(path)!r} holds {dtype} {shape}; expected {what} in C order")
    size, claimed = path.stat().st_size, start + _bytes(shape, dtype)
    if size != claimed:
        raise UserError(
            f"{str(path)!r} has {size} bytes, but its header says {claimed}: it is truncated or damaged"
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape)


def from_bytes(data: bytes) -> np.ndarray:
    """The array of a .npy file's bytes; ValueError for what is none, or is not as long as it says."""
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = header(file)
    except BAD as error:
        raise ValueError(f"it is not a .npy file ({error})") from error
    start = file.tell()
    if dtype.hasobject or start + _bytes(shape, dtype) != len(data):
        raise ValueError(f"it has {len(data)} bytes, and its header says {dtype} {shape}")
    x = np.frombuffer(data, dtype, offset=start)
    return x.reshape(shape, order="F" if fortran else "C")


def npz_names(path: str | pathlib.Path) -> list[str]:
    """The names of the arrays in an .npz file; UserError if it is none."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except BAD as error:
        raise UserError(f"cannot read {path}: {error}. Expected an .npz file") from error


def read_npz(path: str | pathlib.Path, key: str) -> np.ndarray:
    """The array ``key`` of an .npz file. Raises UserError where it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist()]
            if key not in names:
                raise UserError(f"no array {key!r} in {path}; it holds {', '.join(names)[:200]}")
            info = file.getinfo(f"{key}.npy")
            if info.file_size > MOST_PACKED * info.compress_size + 1024:
                raise ValueError(f"{key} claims {info.file_size} bytes in {info.compress_size}")
            with file.open(info) as member:
                shape, fortran, dtype = header(member)
                if dtype.hasobject or member.tell() + _bytes(shape, dtype) != info.file_size:
                    raise ValueError(f"{key} is not {dtype} {shape} as its header says")
                x = np.frombuffer(bytearray(member.read()), dtype)
            return x.reshape(shape, order="F" if fortran else "C")
    except UserError:
        raise
    except (*BAD, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}. Expected an .npz file") from error


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
