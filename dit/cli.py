"""What the entry points share: config overrides, ``name:key=value`` specs, and errors for people.

A UserError is printed as one message without a traceback, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dit.storage import StorageError
from dit.types import OutsideError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (  # a path that cannot be used, which its owner alone can mend
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR),
)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # <malloc.h>


def run(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Call ``main`` and exit with its status: 2 and one message for a UserError.

    1 for an OutsideError: launchers start such a run again, and no run that ends with 2.
    """
    keep_freed_memory()
    try:
        with full_disk():
            status = main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if any(os.strerror(number) in str(error) for number in FULL):
            os._exit(2)  # what others write at exit would fail too, and at length
        status = 1 if isinstance(error, OutsideError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Inside, storage that is full or cannot be used raises UserError: no mistake of ours."""
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
    """On a machine with nothing but CPUs, and glibc, let ``malloc`` keep what a step frees.

    XLA's temporaries come and go with every step. Given back to the system they are mapped, and
    zeroed, anew each time: a seventh of a train step of DiT-S/2 at batch 8 on two cores. To be
    called before JAX starts its threads; elsewhere (an accelerator, another C library) it does
    nothing.
    """
    devices = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
    if sys.platform != "linux" or any(os.path.exists(path) for path in devices):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(option, value)


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


def literal(text: str) -> Any:
    """A Python literal if ``text`` is one (``true``, ``false`` and ``none`` too), else the text."""
    spelt = {"true": True, "false": False, "none": None, "nan": float("nan"), "inf": float("inf")}
    if text.lower() in spelt:
        return spelt[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_spec(text: str, number: str | None = None) -> dict[str, Any]:
    """``"ddim:eta=0.5,clip=true"`` as ``{"name": "ddim", "eta": 0.5, "clip": True}``.

    ``number``: the spec that a bare number stands for, as ``"cfg:scale"`` lets ``--guidance=3`` mean
    ``cfg:scale=3``. Raises UserError for anything else.
    """
    if number is not None and isinstance(literal(text), int | float):
        text = f"{number}={text}"
    name, _, rest = text.partition(":")
    spec = {"name": name}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"got {text!r}; expected name or name:key=value,key=value")
        spec[key] = literal(value)
    return spec


def parse_labels(text: str, num_classes: int | None) -> list[int]:
    """``"0,1,5-7"`` as a list of class labels; UserError for one outside ``[0, num_classes)``."""
    labels: list[int] = []
    for item in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = item.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"got label {item!r} in {text!r}; expected whole numbers, like 0,1,5-7")
        labels.extend(range(int(first), int(last if dash else first) + 1))
    if num_classes is None:
        raise UserError("this model was trained without labels; leave --labels out and give --num")
    wrong = sorted({n for n in labels if n >= num_classes})
    if wrong or not labels:
        raise UserError(
            f"got labels {', '.join(map(str, wrong)) or repr(text)}; expected numbers from 0 to "
            f"{num_classes - 1}: the model has {num_classes} classes"
        )
    return labels
