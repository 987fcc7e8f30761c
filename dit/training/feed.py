"""Batches on the device before they are asked for, each with the data position that follows it."""

from __future__ import annotations

import collections
from typing import Any

import jax
from jax.sharding import NamedSharding

from dit.data.pipeline import Batches
from dit.types import UserError

Shapes = dict[str, jax.ShapeDtypeStruct]
AHEAD = 2  # batches that are read before they are asked for


class Feed:
    """Keeps ``ahead`` batches on the device: copying one overlaps with computing on another.

    ``position`` is the state of the data after the batches *taken*, not those read ahead: what a
    checkpoint must hold.
    """

    def __init__(self, batches: Batches, sharding: NamedSharding, ahead: int = AHEAD):
        self._batches, self._sharding, self._ahead = batches, sharding, ahead
        self._size, self._shapes = batches.batch_size, bucket_shapes(batches)
        batches.take_rows(local_rows(sharding, self._size))
        self._ready: collections.deque[tuple[Any, int, Any]] = collections.deque()
        self.position = batches.get_state()

    @property
    def bucket(self) -> int:
        """The bucket of the batch that ``take`` will return."""
        return self._ready[0][1] if self._ready else self._batches.bucket

    def take(self) -> dict[str, jax.Array]:
        """The next batch. Call ``fill`` after the step that uses it has been sent off."""
        if not self._ready:
            self.fill(1)
        batch, _, self.position = self._ready.popleft()
        return batch

    def fill(self, count: int | None = None) -> None:
        """Read batches until ``ahead`` (or ``count``) of them are under way to the device."""
        while len(self._ready) < (self._ahead if count is None else count):
            bucket, rows = self._batches.bucket, next(self._batches)
            whole = {
                k: jax.ShapeDtypeStruct((self._size, *x.shape[1:]), x.dtype)
                for k, x in rows.items()
            }
            if whole != self._shapes[bucket]:  # JAX would silently compile another program for it
                raise UserError(
                    f"got a batch of {_show(whole)}; expected {_show(self._shapes[bucket])}, as the "
                    "first example has"
                )
            batch = {
                name: jax.make_array_from_process_local_data(self._sharding, x, whole[name].shape)
                for name, x in rows.items()
            }
            self._ready.append((batch, bucket, self._batches.get_state()))


def _show(shapes: Shapes) -> str:
    return ", ".join(f"{name} {x.dtype} {x.shape}" for name, x in shapes.items())


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """The rows of a batch that the devices of this process hold, in order.

    They follow from the mesh, not from the number of the process: processes along a ``tensor`` axis
    hold the same rows, and the devices of one process need not hold neighbouring ones.
    """
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (rows,) in held for row in range(*rows.indices(batch_size))})


def bucket_shapes(batches: Batches) -> dict[int, Shapes]:
    """Shapes and dtypes of a whole batch of each bucket that has examples; nothing is taken."""
    return {
        i: {k: jax.ShapeDtypeStruct(*shape) for k, shape in batches.shapes(i).items()}
        for i in batches.coming()
    }
