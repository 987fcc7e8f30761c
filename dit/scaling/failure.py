"""A run that fails leaves a row with its error, and the sweep continues with the next run.

This holds for failures of that run alone: it diverged, its config is inconsistent, or its program or
arrays are too large for the device. Whatever would stop any other run too ends the sweep: Ctrl-C, a full
disk, a directory that another job holds, a bug.
"""

from __future__ import annotations

from typing import Any

import jax

from dit.types import OutsideError, UserError

OWN = (UserError, MemoryError, ArithmeticError, jax.errors.JaxRuntimeError)
LONGEST = 500  # how many characters of an error are kept: XLA's list of allocations has thousands


def failed(error: Exception) -> dict[str, Any]:
    """The ``status`` and ``error`` in the row of a run that ended with one of ``OWN``.

    Re-raises an OutsideError.
    """
    if isinstance(error, OutsideError):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return {"status": "failed", "error": text[:LONGEST]}
