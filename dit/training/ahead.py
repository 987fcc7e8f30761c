"""The programs of a step, one for each shape of a batch, compiled before they are needed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from dit.data.pipeline import Batches
from dit.training.feed import bucket_shapes
from dit.training.program import Program
from dit.types import Key


class AheadOfTime:
    """Compiles the programs of the next so many ``steps`` in a thread, in the order of their use.

    A call of ``run.train_step`` finds done what ``wait`` has waited for. Closed, it begins no other.
    """

    def __init__(self, run: Program, batches: Batches, key: Key, steps: int):
        state, shapes = placed(run.abstract, run.shardings), bucket_shapes(batches)
        self._lowered: dict[int, jax.stages.Lowered] = {}
        for bucket in batches.coming(steps):
            batch = placed(shapes[bucket], dict.fromkeys(shapes[bucket], run.batch_sharding))
            self._lowered[bucket] = run.train_step.lower(state, batch, key)
        self._compiling: dict[int, Future] = {}
        self._pool = ThreadPoolExecutor(1)

    def __len__(self) -> int:
        return len(self._lowered)

    def text(self) -> str:
        """Of all programs."""
        return "\n".join(lowered.as_text() for lowered in self._lowered.values())

    def start(self) -> None:
        """Begin to compile."""
        for bucket, lowered in self._lowered.items():
            self._compiling[bucket] = self._pool.submit(lowered.compile)

    def wait(self, bucket: int) -> None:
        """Until the program of a bucket is compiled, if it is to be."""
        if bucket in self._compiling:
            self._compiling.pop(bucket).result()

    def close(self) -> None:
        """Wait for what is being compiled."""
        self._pool.shutdown(cancel_futures=True)


def placed(abstract: Any, shardings: Any) -> Any:
    """Shapes with shardings, in place of arrays."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
