"""One run, one directory: its lock, its config, and what may change when it goes on.

``config.json`` holds the resolved config of the run. A directory made by another config is refused, with
the keys that differ; only ``log``, ``samples`` and ``checkpoint`` may change, and ``steps`` where the
schedule does not depend on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dit import storage
from dit.storage import lease
from dit.training.optimizer import depends_on_steps
from dit.types import OutsideError, UserError

log = logging.getLogger(__name__)

FREE = ("log", "samples", "checkpoint")


def plain(config: Any) -> dict[str, Any]:
    """A config (a mapping or a ConfigDict) as it reads back from JSON: dicts, lists, numbers."""
    return json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key: old value -> new value`` for every key that differs and is not free to."""
    before, after = _flat(old), _flat(new)
    steps_free = not depends_on_steps(new["schedule"]["name"])
    missing = "(not there)"
    return [
        f"{key}: {before.get(key, missing)!r} -> {after.get(key, missing)!r}"
        for key in sorted({*before, *after})
        if before.get(key, missing) != after.get(key, missing)
        and key.split(".")[0] not in FREE
        and not (key == "steps" and steps_free)
    ]


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """Raise UserError naming the keys in which a config differs from the one that made ``where``."""
    changed = differences(old, new)
    if changed:
        raise UserError(
            f"{where} was made by another config; these keys differ (there -> now): "
            + "; ".join(changed)
            + ". Run with the old values, or give another --workdir"
        )


def write_config(workdir: storage.Place, config: Mapping[str, Any]) -> None:
    """Keep ``config`` as ``workdir/config.json``; UserError if another run's is there.

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
            check_same(old, config, str(workdir))
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
