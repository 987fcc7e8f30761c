"""One run, one directory: its lock, its config, and what may change when it goes on.

``config.json`` holds the resolved config of the run. Its keys are *identity*, what is computed, or
*operational*, how: on which mesh, with which kernels, how often it is saved. A directory of a run with
another identity is refused, with the keys that differ. What is operational may change from one start to
the next, and so may ``steps`` where the schedule does not depend on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from dit import storage
from dit.storage import lease
from dit.training.optimizer import depends_on_steps
from dit.types import OutsideError, UserError

log = logging.getLogger(__name__)

OPERATIONAL = (  # sections, and keys of others: results are the same but for rounding
    *("log", "samples", "checkpoint", "loader", "mesh"),
    *("model.remat", "model.unroll", "model.attention"),
    *("optimizer.accumulate", "optimizer.skip"),
)
Changes = dict[str, list[Any]]  # key: what it was, and what it is


def plain(config: Any) -> dict[str, Any]:
    """A config (a mapping or a ConfigDict) as it reads back from JSON: dicts, lists, numbers."""
    return json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config))


def of_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config, perhaps of an earlier version, in the keywords of this one."""
    config = plain(config)
    objective = config.get("objective", {})
    if "per_frame" in objective:
        objective["level"] = "frame" if objective.pop("per_frame") else "sample"
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Every key that differs, with both values."""
    before, after = _flat(of_today(old)), _flat(new)
    missing = "(not there)"
    pairs = {k: [before.get(k, missing), after.get(k, missing)] for k in sorted({*before, *after})}
    none = (None, False, missing)  # a key of a later version, which says nothing
    return {k: p for k, p in pairs.items() if p[0] != p[1] and not (p[0] in none and p[1] in none)}


def is_operational(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a run of ``config`` may go on with another value of ``key``."""
    if key == "steps":
        return not depends_on_steps(config["schedule"]["name"])
    return any(f"{key}.".startswith(f"{free}.") for free in OPERATIONAL)


def tell(changes: Changes) -> str:
    """``key: old value -> new value``, for each."""
    return "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


def check_same(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str, allowed: Collection[str] = ()
) -> Changes:
    """What differs in a config from the one that made ``where``.

    Raises UserError naming the keys that are neither operational nor ``allowed``.
    """
    changes = differences(old, new)
    wrong = {k: v for k, v in changes.items() if k not in allowed and not is_operational(k, new)}
    if wrong:
        rate = " (--new-lr goes on with another learning rate)" if "optimizer.lr" in wrong else ""
        raise UserError(
            f"{where} was made by another config; these keys differ (there -> now): {tell(wrong)}. "
            f"Run with the old values{rate}, or give another --workdir"
        )
    return changes


def write_config(
    workdir: storage.Place, config: Mapping[str, Any], allowed: Collection[str] = ()
) -> None:
    """Keep ``config`` as ``workdir/config.json``; UserError if another run's is there.

    What is operational, or ``allowed``, may differ.

    A run that never came to log or save anything leaves nothing to mix up: its config is replaced.
    """
    file = workdir / "config.json"
    saved = [*workdir.glob("checkpoints/[0-9]*")]
    traces = [workdir / "metrics.jsonl", workdir / "damaged", *saved]
    if file.exists() and any(map(_is_something, traces)):
        try:
            old = read_config(workdir)
        except UserError as error:
            if not saved:
                raise
            log.warning("%s; its checkpoints have the config too, so it is written anew", error)
        else:
            check_same(old, config, str(workdir), allowed)
    storage.write(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_config(workdir: str | storage.Place) -> dict[str, Any]:
    """The config of the run in ``workdir``; UserError if there is none, or it cannot be read."""
    file = storage.workdir(workdir) / "config.json"
    if not file.is_file():
        raise UserError(f"no run in {workdir}: there is no {file.name}. Train one there first")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}); restore it, or start in another workdir"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged: it holds {config!r}, which is no config; restore it")
    return config


@contextlib.contextmanager
def lock(workdir: storage.Place) -> Iterator[Callable[[], None]]:
    """Hold ``workdir`` for one job; UserError if another one has it. A dead job holds nothing.

    What it yields raises UserError once the workdir is no longer held, which can only happen to one
    in a bucket (see ``storage.lease``): to be called before anything is written.
    """
    if isinstance(workdir, storage.BucketPath):
        with lease.hold(workdir / ".lock") as held:
            yield held.sure
        return
    with _locked(workdir):
        yield lambda: None


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    import fcntl

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".lock").touch()
    except OSError as error:  # read-only, missing, looping, a file, too long, full ...
        raise OutsideError(
            f"cannot write in {workdir} ({error}); give another --workdir"
        ) from error
    with open(workdir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise OutsideError(
                f"{workdir} is in use by another job ({file.read().strip() or 'unknown'}); two jobs "
                "would spoil each other's checkpoints. Stop it, or give another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def _is_something(trace: storage.Place) -> bool:
    return trace.is_dir() or (trace.exists() and trace.stat().st_size > 0)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return flat
