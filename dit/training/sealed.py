"""What a checkpoint says of itself, and the seal over it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import dit
from dit.config import fingerprint

FORMAT = 2  # 1 had no seal


def described(
    step: int,
    config: Mapping[str, Any],
    arrays: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    history: Sequence[Any] = (),
    example: Mapping[str, Any] | None = None,
    frozen: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The ``meta`` of a checkpoint. ``arrays``: shape, dtype and ``bits``, a fingerprint, of each.

    ``history``: changes of the config during the run. ``example``: what of the data the model depends
    on; ``frozen``: the fingerprints of weights that nothing trains.
    """
    meta = {
        "format": FORMAT,
        "step": step,
        "config": config,
        "changes": list(history),
        "config_fingerprint": fingerprint(config),
        "example": None if example is None else dict(example),
        "frozen": dict(frozen or {}),
        "versions": {
            "dit": dit.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "arrays": dict(arrays),
    }
    return {**meta, "seal": seal(meta, data)}


def seal(meta: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """A hash of everything in a checkpoint but its arrays, so that no change goes unnoticed."""
    return fingerprint({"meta": {k: v for k, v in meta.items() if k != "seal"}, "data": data})
