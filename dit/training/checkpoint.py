"""Checkpoints on Orbax: written in the background, complete or not at all, checked bit for bit.

A checkpoint holds ``state`` (the TrainState), ``data`` (the position in the training stream) and
``meta`` (the resolved config and its changes during the run, versions, the shape, dtype and fingerprint
of every array, and a seal over all of this and ``data``). Orbax by itself casts dtypes and restores
flipped bits silently; ``meta`` detects both. A damaged checkpoint is moved to ``workdir/damaged``, and
the previous one is used.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers
from orbax.checkpoint.checkpoint_managers import LatestN

from dit import storage
from dit.config import fingerprint
from dit.parallel import multihost
from dit.parallel.fingerprints import describe, fingerprints
from dit.parallel.frozen import check_known
from dit.training import sealed
from dit.training.workdir import Changes, check_same
from dit.types import OutsideError, Params, UserError, first_line

log = logging.getLogger(__name__)

READ = {"create": False, "save_root_metadata": False, "enable_async_checkpointing": False}
SLICE = 2**20  # bytes: replicas share the writing of an array if each has as many
STEP = re.compile("0|[1-9][0-9]*")  # the name of its directory
NOT_DAMAGE = (UserError, MemoryError, jax.errors.JaxRuntimeError)  # of what a read may raise


class DamagedError(Exception):
    """A checkpoint that does not hold what was saved."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """Parameters from a checkpoint. ``fingerprint``: twelve hex digits over every bit of them."""

    params: Params
    step: int
    which: str
    fingerprint: str


class Checkpoints:
    """The checkpoints of a run, for the single job that writes them (see ``workdir.lock``)."""

    def __init__(
        self,
        workdir: storage.Place,
        config: dict[str, Any],
        keep: int = 3,
        *,
        example: Mapping[str, Any] | None = None,
        frozen: Mapping[str, str] | None = None,
        allowed: Collection[str] = (),
    ):
        """``example``: what of the data the model depends on; ``frozen``: fingerprints of weights."""
        if keep < 1:
            raise UserError(f"got checkpoint.keep={keep}; expected 1 or more")
        self._workdir, self._config, self._allowed = workdir, config, allowed
        self._example, self._frozen = example, dict(frozen or {})
        self.changes: Changes = {}
        self._history: list[dict[str, Any]] = []  # of changes to the config, as in ``meta``
        self._written: int | None = None  # the step last passed to Orbax
        if multihost.is_main():
            _clear(workdir / "checkpoints")
        self._manager = open_manager(
            workdir,
            preservation_policy=LatestN(keep),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )

    def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
        """Start writing a checkpoint of ``state`` and return once the arrays have been copied."""
        if step in self._manager.all_steps():
            return
        bits = fingerprints(state)
        meta = sealed.described(
            step,
            self._config,
            {k: {**v, "bits": bits[k]} for k, v in describe(state).items()},
            data,
            history=self._history,
            example=self._example,
            frozen=self._frozen,
        )
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave(meta),
        )
        self._finish()
        try:
            self._manager.save(step, args=args, force=True)
        except storage.failures(self._workdir) as error:
            raise _not_written(error, self._manager.latest_step()) from error
        self._written = step

    def check(self) -> None:
        """Raise UserError if a write in the background has failed."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise _not_written(error, self._manager.latest_step()) from error

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """The latest ``(state, data)`` that is intact on all processes, or None in a new directory.

        ``abstract``: the state's shapes, dtypes and shardings. The attribute ``changes`` then says how
        the config differs from that of the checkpoint, and later checkpoints store it. Raises UserError
        if there are checkpoints but none is intact, or if they belong to another config or model.
        """
        with open_manager(self._workdir, **READ) as reader:
            steps = [*reader.all_steps()]
            while (step := multihost.highest_of_all(max(steps, default=-1))) >= 0:
                meta, data, state, changes, damage = {}, {}, None, {}, ""
                try:  # each process reads its own part: Orbax must not wait for one that fails
                    if step not in steps:
                        raise DamagedError("it is not there")
                    meta, data = _read_json(reader, step)
                    where = f"checkpoint {step} in {self._workdir}"
                    _check_goes_on(describe(abstract), meta, self._workdir)
                    changes = check_same(meta["config"], self._config, where, self._allowed)
                    check_known(self._frozen, meta.get("frozen", {}), where)
                    sealed.check_arrays(describe(abstract), meta, where)
                    state = _read_arrays(reader, step, abstract)
                except DamagedError as error:
                    damage = str(error)
                failed = multihost.who(bool(damage))
                if not failed:
                    try:  # all processes together
                        _check_bits(state, meta)
                        self._history = meta.get("changes", [])
                        if changes:
                            self._history = [*self._history, {"step": step, **changes}]
                        self.changes = changes
                        return state, data
                    except DamagedError as error:
                        damage = str(error)
                state = None
                damage = damage or f"{', '.join(failed)} could not read it"
                log.warning("checkpoint %d is damaged (%s); trying an older one", step, damage)
                self._set_aside(step, damage)
                steps = [s for s in steps if s < step]
        if any((self._workdir / "damaged").glob("*")):
            raise OutsideError(
                f"no intact checkpoint in {self._workdir}: the damaged ones are in its folder damaged, "
                "each with a reason.txt. Mend one and move it back to checkpoints, give another "
                "--workdir, or delete that folder to start afresh"
            )
        return None

    def _set_aside(self, step: int, reason: str) -> None:
        """Move a step away: in place it would be kept, and a good one deleted instead."""
        if multihost.is_main():
            aside = self._workdir / "damaged"
            aside.mkdir(exist_ok=True)
            taken = len(list(aside.glob(f"{step}-*")))
            place = (self._workdir / "checkpoints" / str(step)).rename(aside / f"{step}-{taken}")
            (place / "reason.txt").write_text(reason + "\n")
        multihost.meet("a damaged checkpoint is set aside")
        self._manager.reload()

    def close(self) -> None:
        """Wait until everything is on disk. Raises UserError if a write failed."""
        self._finish()
        self._manager.close()

    def _finish(self) -> None:
        """Wait for the last write, and check that it is there."""
        try:
            self._manager.wait_until_finished()
            if self._written is not None:
                place = self._workdir / "checkpoints" / str(self._written)
                if not _is_whole(place):
                    raise OSError(f"it was written, and there is no {place}")
                self._written = None
        except Exception as error:
            raise _not_written(error, self._manager.latest_step()) from error


def steps(workdir: str | storage.Place) -> list[int]:
    """The steps that have a checkpoint, oldest first; UserError if there are none."""
    folder = storage.workdir(workdir) / "checkpoints"
    found = sorted(int(p.name) for p in folder.glob("*") if STEP.fullmatch(p.name) and _is_whole(p))
    if not found:
        raise UserError(f"no checkpoint in {workdir}; train there first, or give another --workdir")
    return found


def read_meta(workdir: str | storage.Place, step: int | None = None) -> dict[str, Any]:
    """The ``meta`` of a checkpoint (default: the latest), with its ``step``; UserError if damaged."""
    known = steps(workdir)
    step = known[-1] if step is None else step
    if step not in known:
        raise UserError(f"no checkpoint at step {step} in {workdir}; there are {known}")
    with open_manager(storage.workdir(workdir), **READ) as manager:
        try:
            return {**_read_json(manager, step)[0], "step": step}
        except DamagedError as error:
            raise unreadable(workdir, step, error) from error


def latest_config(workdir: str | storage.Place) -> dict[str, Any]:
    """The resolved config that the latest checkpoint was made with."""
    return read_meta(workdir)["config"]


def restore_params(
    workdir: str | storage.Place,
    abstract: Params,
    *,
    which: str | None = None,
    step: int | None = None,
    part: bool = False,
) -> Restored:
    """Only the parameters of a checkpoint, or one of their averages, checked bit for bit.

    ``abstract``: their shapes, with the desired shardings (default: the first device). ``which``:
    ``"params"`` or the name of an average; by default the average with the longest half-life, or the
    parameters if there is none. ``step``: by default the latest. ``part``: ``abstract`` may leave arrays
    out. Raises UserError for a name or step that does not exist, for parameters of another model, and
    for a damaged checkpoint.
    """
    meta = read_meta(workdir, step)
    which = sealed.chosen(meta, which, workdir)
    tree = {"params": abstract} if which == "params" else {"ema": {which: abstract}}
    wanted = describe(tree)
    prefix = next(iter(wanted)).removesuffix(next(iter(describe(abstract))))
    arrays = {
        k: v
        for k, v in meta["arrays"].items()
        if k.startswith(prefix) and (k in wanted or not part)
    }
    meta = {**meta, "arrays": arrays}
    sealed.check_arrays(wanted, meta, f"checkpoint {meta['step']} in {workdir}")
    with open_manager(storage.workdir(workdir), **READ) as manager:
        try:
            tree = _read_arrays(manager, meta["step"], tree)
            _check_bits(tree, meta)
        except DamagedError as error:
            raise unreadable(workdir, meta["step"], error) from error
    params = tree["params"] if which == "params" else tree["ema"][which]
    bits = {k: v["bits"] for k, v in meta["arrays"].items()}
    return Restored(params, meta["step"], which, fingerprint(bits))


def taken_from(state: Any, which: str | None = None) -> Restored:
    """What ``restore_params`` would return from a checkpoint of this state."""
    which = sealed.longest(state.ema) if which is None else which
    tree = {"params": state.params} if which == "params" else {"ema": {which: state.ema[which]}}
    params = tree["params"] if which == "params" else tree["ema"][which]
    return Restored(params, int(state.step), which, fingerprint(fingerprints(tree)))


def open_manager(
    workdir: storage.Place, state: Any = None, **options: Any
) -> ocp.CheckpointManager:
    """Orbax's manager; a read-only one (``READ``) belongs to this process and waits for no other.

    ``state``: what handles the arrays, if not Orbax's usual way.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    among = alone if options.get("create") is False else ocp.options.MultiprocessingOptions()
    return ocp.CheckpointManager(
        storage.for_orbax(workdir / "checkpoints"),
        options=ocp.CheckpointManagerOptions(multiprocessing_options=among, **options),
        item_handlers={
            "state": state or _arrays(among),
            "data": ocp.JsonCheckpointHandler(multiprocessing_options=among),
            "meta": ocp.JsonCheckpointHandler(multiprocessing_options=among),
        },
    )


def _arrays(among: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    """Orbax's usual handler, but that small arrays which several devices hold are written by one.

    By default each device writes a slice of every such array, for which a program of its own is
    compiled: 136 of them at the first save of a small model on eight devices. Nor are the files of
    ``array_metadatas`` written, which nothing reads for arrays of numbers.
    """
    array = type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=SLICE,
        array_metadata_store=None,
    )
    registry = type_handlers.create_type_handler_registry((jax.Array, array))
    return ocp.PyTreeCheckpointHandler(
        multiprocessing_options=among, type_handler_registry=registry
    )


def _is_whole(folder: storage.Place) -> bool:
    """Whether Orbax has finished it, as shown by its name or, in a bucket, by a file."""
    if isinstance(folder, storage.BucketPath):
        return ocp.utils.is_checkpoint_finalized(storage.for_orbax(folder))
    return folder.is_dir()


def _clear(folder: storage.Place) -> None:
    """Rename files that have the name of a step, because that step could not be written."""
    for file in folder.glob("[0-9]*"):
        if STEP.fullmatch(file.name) and not file.is_dir():
            junk = file.replace(file.with_name(f"junk-{file.name}"))
            log.warning("%s is no checkpoint; it is called %s now", file, junk.name)


def _read_json(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    args = ocp.args.Composite(meta=ocp.args.JsonRestore(), data=ocp.args.JsonRestore())
    try:
        read = manager.restore(step, args=args)
        meta, data = read["meta"], read["data"]
        intact, version = meta.get("seal") == sealed.seal(meta, data), meta["format"]
    except NOT_DAMAGE:
        raise
    except Exception as error:
        storage.check(manager.directory)
        raise DamagedError(f"its description cannot be read: {first_line(error)}") from error
    if version == 1 or (intact and version != sealed.FORMAT):
        raise UserError(
            f"checkpoint {step} has format {version}; this version reads {sealed.FORMAT}"
        )
    if not intact:
        raise DamagedError("its description is not the one that was written")
    if meta["step"] != step:
        raise DamagedError(f"it is a copy of the one of step {meta['step']}")
    return meta, data


def _read_arrays(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
    """The arrays of ``abstract``, with its shardings; this process reads its own part of each."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device), abstract
    )
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    try:
        state = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    except NOT_DAMAGE:
        raise
    except Exception as error:
        storage.check(manager.directory)
        raise DamagedError(f"its arrays cannot be read: {first_line(error)}") from error
    if not all(isinstance(x, jax.Array) for x in jax.tree.leaves(state)):
        raise DamagedError("some of its arrays are not there under the names they were saved by")
    if describe(state) != describe(abstract):
        raise DamagedError("its arrays came back in other shapes or dtypes than they were saved in")
    return state


def _check_bits(state: Any, meta: dict[str, Any]) -> None:
    """DamagedError unless every bit is as saved. All processes must call this."""
    found = fingerprints(state)
    wrong = [name for name, bits in found.items() if bits != meta["arrays"][name]["bits"]]
    if wrong:
        raise DamagedError(f"the bits of {len(wrong)} arrays have changed: {', '.join(wrong[:3])}")


def _check_goes_on(expected: dict[str, Any], meta: dict[str, Any], workdir: storage.Place) -> None:
    if "step" in expected.keys() - meta["arrays"].keys():
        raise UserError(
            f"{workdir} holds parameters alone, and no run that could go on: begin one with them in "
            f"another workdir, by --config.init_from.path={workdir}"
        )


def unreadable(workdir: Any, step: int, error: Exception) -> UserError:
    """What to raise for a damaged checkpoint of which parameters are wanted."""
    return UserError(
        f"checkpoint {step} in {workdir} is damaged: {error}. Give an older --step, or train again "
        "in that workdir: training sets it aside and goes on from the one before"
    )


def _not_written(error: Exception, latest: int | None) -> OutsideError:
    kept = "none is on disk" if latest is None else f"the last one on disk is step {latest}"
    return OutsideError(f"a checkpoint could not be written ({first_line(error)}); {kept}")
