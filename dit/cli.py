"""What the entry points share: config overrides, class labels, and errors for people.

A UserError is printed as one message without a traceback, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax

from dit.config import fits, literal, number
from dit.storage import StorageError
from dit.types import Count, OutsideError, UserError

__all__ = ["Parser", "literal", "number", "parse", "parse_labels", "run"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (  # a path that cannot be used until its owner changes it
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR),
)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # <malloc.h>


def run(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Call ``main`` and exit with its status.

    A UserError is printed as one message and exits with 2. An OutsideError exits with 1, which tells
    launchers that they may start the run again.
    """
    keep_freed_memory()
    try:
        with full_disk():
            status = main(None)
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else missing_device()
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        if any(os.strerror(number) in str(error) for number in FULL):
            os._exit(2)  # exit handlers would fail to write too, each with a traceback
        status = 1 if isinstance(error, OutsideError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)


def missing_device() -> str | None:
    """Why JAX finds no device, such as a platform that is not there; None if it finds one."""
    try:
        jax.devices()
    except Exception as error:  # of several types, some without a message
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split())[:300]
        return (
            f"JAX finds no device with JAX_PLATFORMS={asked!r}; unset it, or install what drives that "
            "device (pip install 'dit-jax[gpu]' or 'dit-jax[tpu]')"
            + (f". JAX says: {reason}" if reason else "")
        )
    return None


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Turn errors of full or unusable storage into UserErrors: they are no fault of the program."""
    try:
        yield
    except StorageError as error:
        raise OutsideError(
            f"{error}. Give the same command again when it can be: training goes on from its latest "
            "checkpoint"
        ) from error
    except OSError as error:
        if error.errno in CLOSED and error.filename is not None:
            raise UserError(
                f"{os.fspath(error.filename)!r} cannot be used: {error.strerror}. Give another path, or "
                "mend this one"
            ) from error
        if error.errno not in FULL:
            raise
        raise UserError(
            f"a file could not be written ({error}). Make room and give the same command again: "
            "training goes on from its latest checkpoint"
        ) from error


def keep_freed_memory() -> None:
    """Let glibc's ``malloc`` keep freed memory, on machines without accelerators.

    XLA allocates and frees its temporaries at every step. Memory that goes back to the system is
    mapped and zeroed again each time, which takes a seventh of a train step of DiT-S/2 at batch 8 on
    two cores. Call this before JAX starts its threads. With an accelerator or another C library it
    does nothing.
    """
    devices = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
    if sys.platform != "linux" or any(os.path.exists(path) for path in devices):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(option, value)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse ``argv``; ``--config.a.b=value`` arguments come back as ``{"a.b": value}``.

    Raises UserError for any other argument that the parser does not know.
    """
    args, rest = parser.parse_known_args(argv)
    overrides = {}
    for item in rest:
        key, equals, value = item.partition("=")
        if not key.startswith("--config.") or not equals:
            raise UserError(
                f"unknown argument {item!r}; expected --config.SECTION.FIELD=VALUE or an option "
                "listed by --help"
            )
        overrides[key.removeprefix("--config.")] = literal(value)
    return args, overrides


def parse_labels(text: str, num_classes: int | None) -> list[int]:
    """``"0,1,5-7"`` as a list of class labels; UserError for one outside ``[0, num_classes)``."""
    if num_classes is None:
        raise UserError("this model was trained without labels; leave --labels out and give --num")
    labels: list[int] = []
    for item in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = item.partition("-")
        ends = [first, last if dash else first]
        if not all(end.isdecimal() for end in ends):
            raise UserError(f"got label {item!r} in {text!r}; expected whole numbers, like 0,1,5-7")
        wrong = [end for end in ends if len(end) > 9 or int(end) >= num_classes]
        if wrong:
            raise UserError(
                f"got label {wrong[0][:20]}; expected numbers from 0 to {num_classes - 1}: the model "
                f"has {num_classes} classes"
            )
        if int(ends[0]) > int(ends[1]):
            raise UserError(f"got labels {item!r}; expected the lower one first: {last}-{first}")
        labels.extend(range(int(ends[0]), int(ends[1]) + 1))
    if not labels:
        raise UserError(f"got labels {text!r}; expected whole numbers, like 0,1,5-7")
    return labels


def add_size(parser: argparse.ArgumentParser, what: str) -> None:
    """``--size=HxW`` and ``--frames=F``, of ``what``; read by ``size_of``."""
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help=f"height and width of {what}, in pixels"
    )
    parser.add_argument("--frames", type=number(Count), help=f"frames of {what}")


def size_of(args: argparse.Namespace, default: Sequence[int]) -> tuple[int, int, int]:
    """(frames, height, width) that ``--size`` and ``--frames`` ask for; else those of ``default``."""
    frames, height, width = default[:3]
    return (args.frames or frames, *(args.size or (height, width)))


def _size(text: str) -> tuple[int, int]:
    sides = [literal(side) for side in text.lower().split("x")]
    if len(sides) not in (1, 2) or not all(fits(side, Count) for side in sides):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected HEIGHTxWIDTH, such as 24x16")
    return sides[0], sides[-1]
