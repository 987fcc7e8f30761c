"""Runs that fail leave a row that says how, and the sweep goes on with the next.

A failure is a run's own where another run might well succeed: it diverged, its config does not fit
together, its program or its arrays are too large for the device. What would stop any run stops the
sweep: Ctrl-C, a full disk, a directory that another job holds, a mistake in the code.
"""

from __future__ import annotations

from typing import Any

import jax

from dit.types import OutsideError, UserError

OWN = (UserError, MemoryError, ArithmeticError, jax.errors.JaxRuntimeError)
LONGEST = 500  # characters of an error that are kept: XLA's list of allocations has thousands


def failed(error: Exception) -> dict[str, Any]:
    """What a row says of a run that ended in one of ``OWN``: ``status`` and ``error``.

    Raises the error again if it is an OutsideError.
    """
    if isinstance(error, OutsideError):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return {"status": "failed", "error": text[:LONGEST]}
