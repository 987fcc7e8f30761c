"""The parameters of a checkpoint on their way elsewhere: read in parts, and checked bit for bit.

A parameter that is stacked (one array for all layers) is given some layers at a time, as many as a chunk
of the file holds: one, where ``weights.save_params`` wrote it, and of a training checkpoint all that one
device held. Any other is given whole. A part is let go before the next is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import type_handlers

from dit import storage
from dit.parallel.fingerprints import Growing, describe
from dit.training import sealed
from dit.training.checkpoint import NOT_DAMAGE, READ, open_manager, read_meta, unreadable
from dit.types import first_line

Parts = Callable[[str], Iterator[np.ndarray]]  # of the parameter of a name


class Opened(type_handlers.ArrayHandler):
    """Orbax's handler of arrays, for those that are opened and not read yet."""

    async def deserialize(self, infos: Any, args: Any = None) -> list[Any]:
        found = []
        for info in infos:
            spec = type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
            found.append(await ts.open(ts.Spec(spec), open=True, context=info.ts_context))
        return found


def opened(
    workdir: str | storage.Place,
    abstract: Mapping[str, Any],
    stacked: Collection[str],
    *,
    which: str | None = None,
    step: int | None = None,
) -> Parts:
    """What reads the parameters ``abstract``, shapes by name, of a checkpoint; no number is read yet.

    ``stacked``: those that may be given in parts. ``which``, ``step``: as of
    ``checkpoint.restore_params``, as are the errors: of damage after the last part of a parameter.
    """
    meta = read_meta(workdir, step)
    which, step = sealed.chosen(meta, which, workdir), meta["step"]
    inside = ("params",) if which == "params" else ("ema", which)
    prefix = "/".join(inside)
    tree = unflatten_dict({f"{prefix}/{name}": x for name, x in abstract.items()}, sep="/")
    meta["arrays"] = {k: v for k, v in meta["arrays"].items() if k.startswith(f"{prefix}/")}
    sealed.check_arrays(describe(tree), meta, f"checkpoint {step} in {workdir}")
    registry = type_handlers.create_type_handler_registry((jax.Array, Opened()))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    how = ocp.args.PyTreeRestore(
        item=tree,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=jax.Array), tree),
        partial_restore=True,
    )
    with open_manager(storage.workdir(workdir), state=handler, **READ) as manager:
        found = _careful(
            workdir, step, lambda: manager.restore(step, args=ocp.args.Composite(state=how))
        )
    files = flatten_dict(found["state"], sep="/")

    def parts(name: str) -> Iterator[np.ndarray]:
        file, bits = files[f"{prefix}/{name}"], Growing()
        layers = file.chunk_layout.read_chunk.shape[0] if name in stacked else None
        for at in _slices(file.shape, layers):
            part = _careful(workdir, step, lambda at=at: file[at].read().result())
            bits.add(part)
            yield part
        if bits.digits() != meta["arrays"][f"{prefix}/{name}"]["bits"]:
            raise unreadable(workdir, step, ValueError(f"the bits of {name} have changed"))

    return parts


def saved(
    workdir: str | storage.Place, which: str | None = None, step: int | None = None
) -> dict[str, str]:
    """The fingerprint that a checkpoint keeps of each of its parameters, which are not read."""
    meta = read_meta(workdir, step)
    which = sealed.chosen(meta, which, workdir)
    prefix = "params/" if which == "params" else f"ema/{which}/"
    arrays = meta["arrays"].items()
    return {k.removeprefix(prefix): v["bits"] for k, v in arrays if k.startswith(prefix)}


def _slices(shape: tuple[int, ...], layers: int | None) -> Iterator[Any]:
    if layers is None:
        yield ...
        return
    for first in range(0, shape[0], layers):
        yield slice(first, min(first + layers, shape[0]))


def _careful(workdir: Any, step: int, read: Callable[[], Any]) -> Any:
    """What ``read`` gives; UserError for a checkpoint of which it cannot be had."""
    try:
        return read()
    except NOT_DAMAGE:
        raise
    except Exception as error:
        storage.check(storage.workdir(workdir))
        reason = ValueError(f"its arrays cannot be read: {first_line(error)}")
        raise unreadable(workdir, step, reason) from error
