"""A checkpoint of parameters alone, written one array at a time: of weights that come from elsewhere.

It is read as any other (``checkpoint.restore_params``), but no run goes on from it: there are no
optimizer and no averages in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import type_handlers

from dit import storage
from dit.parallel.fingerprints import fingerprint_of
from dit.training import sealed
from dit.training.checkpoint import open_manager
from dit.types import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Later:
    """An array that is made when it is needed, and not kept.

    ``parts()`` gives it in equal parts along its first axis, the same ones whenever it is called.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterable[Any]]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


class OneByOne(type_handlers.ArrayHandler):
    """Orbax's handler of arrays, for those that are made ``Later``: a part is a chunk of the file."""

    def __init__(self):
        super().__init__(array_metadata_store=None)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        for value, info, arg in zip(values, infos, args, strict=True):
            file, first = None, 0
            for part in value.parts():
                if file is None:
                    file = await self._open(value, info, arg, part.shape)
                at = slice(first, first + len(part)) if part.ndim else ...
                try:
                    await file[at].write(np.asarray(part))
                except ValueError as error:
                    raise UserError(
                        f"the weights could not be written: {_reason(error)}. Nothing is left of them: "
                        "make room, or give another --workdir"
                    ) from error
                first += len(part) if part.ndim else 0
        return []

    async def _open(self, value: Later, info: Any, arg: Any, chunk: tuple[int, ...]) -> Any:
        ocdbt = info.is_ocdbt_checkpoint
        spec = type_handlers.get_json_tspec_write(
            info,
            use_ocdbt=ocdbt,
            global_shape=value.shape,
            local_shape=chunk,
            dtype=value.dtype,
            process_index=jax.process_index() if ocdbt else None,
            arg=arg,
        )
        spec = type_handlers.get_cast_tspec_serialize(spec, value, arg)
        return await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)


def save_params(
    workdir: storage.Place,
    config: dict[str, Any],
    params: Mapping[str, Later],
    *,
    example: Mapping[str, Any],
    frozen: Mapping[str, str],
) -> None:
    """Make ``workdir`` that of a run at step 0: its ``config.json`` and a checkpoint of ``params``.

    ``params``: by name (``blocks/mlp/in/kernel``), each made twice: for its fingerprint, and to be
    written; one part is in memory at a time. ``example``, ``frozen``: as of ``checkpoint.Checkpoints``.
    Raises UserError for a workdir that is not empty, and for storage that takes no more; what was
    written of the checkpoint is removed then.
    """
    check_new(workdir)
    arrays = {}
    for name, later in params.items():
        bits = fingerprint_of(later.parts())
        known = {"shape": list(later.shape), "dtype": str(np.dtype(later.dtype)), "bits": bits}
        arrays[f"params/{name}"] = known
    meta = sealed.described(0, config, arrays, {}, example=example, frozen=frozen)
    if not isinstance(workdir, storage.BucketPath):
        workdir.mkdir(parents=True, exist_ok=True)
    usual = type_handlers.ArrayHandler(array_metadata_store=None)
    registry = type_handlers.create_type_handler_registry((Later, OneByOne()), (jax.Array, usual))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    state = {"params": unflatten_dict(dict(params), sep="/")}
    how = {"enable_async_checkpointing": False, "cleanup_tmp_directories": True}
    with open_manager(workdir, state=handler, **how) as manager:
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave({}),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            manager.save(0, args=args, force=True)
        except BaseException:
            if not isinstance(workdir, storage.BucketPath):
                shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
            raise
    storage.write(workdir / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _reason(error: Exception) -> str:
    """The last part of a line of TensorStore's, which begins with the names of files."""
    return first_line(error).rpartition(": ")[2]


def check_new(workdir: storage.Place) -> None:
    """Raise UserError for a workdir in which there is a run."""
    saved = any(place.name.isdecimal() for place in workdir.glob("checkpoints/*"))
    if saved or (workdir / "config.json").exists():
        raise UserError(
            f"there is a run in {workdir}; expected an empty directory: give another one"
        )
