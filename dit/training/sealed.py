"""What a checkpoint says of itself, and the seal over it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

import dit
from dit.config import fingerprint, suggest
from dit.types import UserError

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


def chosen(meta: Mapping[str, Any], which: str | None, where: Any) -> str:
    """``params`` or the name of an average; None: of the longest half-life, if there is one.

    UserError for what the checkpoint has not.
    """
    names = [n.split("/")[1] for n in meta["arrays"] if n.startswith("ema/")]
    averages = list(dict.fromkeys(names))
    which = longest(averages) if which is None else which
    if which not in (known := ["params", *averages]):
        raise UserError(f"no parameters {which!r} in {where}: {suggest(which, known)}")
    return which


def longest(averages: Iterable[str]) -> str:
    """The average of the longest half-life, or ``params`` without any."""
    return max(averages, key=lambda n: float(n.removeprefix("ema_")), default="params")


def check_arrays(expected: Mapping[str, Any], meta: Mapping[str, Any], where: str) -> None:
    """Raise UserError unless the arrays are those that are ``expected``, by shape and dtype."""
    saved = {k: {"shape": v["shape"], "dtype": v["dtype"]} for k, v in meta["arrays"].items()}
    if saved == expected:
        return
    wrong = [
        f"{k}: {saved.get(k, 'not there')}, expected {expected.get(k, 'nothing')}"
        for k in sorted({*saved, *expected})
        if saved.get(k) != expected.get(k)
    ]
    raise UserError(
        f"{where} holds other arrays than this model: {'; '.join(wrong[:3])}"
        f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Was it made by another version?"
    )


def seal(meta: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """A hash of everything in a checkpoint but its arrays, so that no change goes unnoticed."""
    return fingerprint({"meta": {k: v for k, v in meta.items() if k != "seal"}, "data": data})
