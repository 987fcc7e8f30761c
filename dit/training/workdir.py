"""The directory of a run: its lock, its config, and which settings may change on resume.

``config.json`` holds the resolved config of the run. A key belongs either to its *identity* (what is
computed) or is *operational* (how: on which mesh, with which kernels, how often it is saved). The
directory of a run with another identity is refused, and the error lists the keys that differ.
Operational keys may change from one start to the next, and so may ``steps`` if the schedule does not
depend on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from dit import storage
from dit.storage import lease
from dit.training.optimizer import depends_on_steps
from dit.types import OutsideError, UserError

log = logging.getLogger(__name__)

OPERATIONAL = (  # sections and single keys that change results by rounding at most
    *("log", "samples", "scores", "checkpoint", "loader", "mesh"),
    *("codec.path", "codec.tile", "codec.dtype"),  # the weights are known by a fingerprint
    *("text.encoders.path", "text.encoders.tokenizer"),  # and so are these
    *("model.remat", "model.unroll", "model.attention"),
    *("optimizer.accumulate", "optimizer.skip"),
)
Changes = dict[str, list[Any]]  # key -> (old value, new value)


def plain(config: Any) -> dict[str, Any]:
    """A config (a mapping or a ConfigDict) as JSON would return it: dicts, lists, numbers."""
    return json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config))


def of_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config, perhaps of an earlier version, in the keywords of this one."""
    config = plain(config)
    objective = config.get("objective", {})
    if "per_frame" in objective:
        objective["level"] = "frame" if objective.pop("per_frame") else "sample"
    if "known" in objective:
        known = objective.pop("known")
        named = "data" if known == "data" else f"tokens:share={known}"
        objective["tasks"] = [named] if known else []
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Every key that differs, with both values."""
    old, new, missing = of_today(old), plain(new), "(not there)"
    if "scores" not in old and new.get("scores", {}).get("every") == 0:
        new = {k: v for k, v in new.items() if k != "scores"}  # another version's, without effect
    before, after = _flat(old), _flat(new)
    pairs = {k: [before.get(k, missing), after.get(k, missing)] for k in sorted({*before, *after})}
    later = (
        [missing, None],
        [None, missing],
        [missing, False],
        [missing, []],
    )  # another version's, without effect
    return {k: p for k, p in pairs.items() if p[0] != p[1] and p not in later}


def is_operational(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a run of ``config`` may resume with another value of ``key``."""
    if key.startswith("init_from.") and config.get("lora", {}).get("rank") is not None:
        return True  # the frozen network of a LoRA, known by its fingerprint
    if key == "steps":
        return not depends_on_steps(config["schedule"]["name"])
    key = re.sub(r"\[\d+\]", "", key)  # of any of several
    return any(f"{key}.".startswith(f"{free}.") for free in OPERATIONAL)


def tell(changes: Changes) -> str:
    """``key: old value -> new value``, for each."""
    return "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


def check_same(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str, allowed: Collection[str] = ()
) -> Changes:
    """How a config differs from the one that made ``where``.

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
    """Write ``config`` to ``workdir/config.json``; UserError if the config of another run is there.

    Operational and ``allowed`` keys may differ. The config of a run that has neither logged nor saved
    anything is replaced, as there is nothing to mix up.
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
    """The config of the run in ``workdir``; UserError if it is missing or unreadable."""
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
    """Hold ``workdir`` for one job; UserError if another job holds it. A dead job holds nothing.

    It yields a function to call before anything is written. That raises UserError once the workdir is no
    longer held, which can only happen in a bucket (see ``storage.lease``).
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
    """All keys with their values: ``a.b`` of sections, ``a.b[0].c`` of lists of sections."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for i, part in enumerate(value):
                flat |= _flat(part, f"{prefix}{key}[{i}].")
        else:
            flat[prefix + key] = value
    return flat
