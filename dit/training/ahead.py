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
    """Compiles the programs of the next ``steps`` steps in a thread, in the order of their use.

    After ``wait(bucket)``, a call of ``run.train_step`` on such a batch compiles nothing.
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
        """The text of all programs."""
        return "\n".join(lowered.as_text() for lowered in self._lowered.values())

    def start(self) -> None:
        """Begin to compile, and return at once."""
        for bucket, lowered in self._lowered.items():
            self._compiling[bucket] = self._pool.submit(lowered.compile)

    def wait(self, bucket: int) -> None:
        """Wait until the program of a bucket is compiled. Raises what the compiler raises."""
        if bucket in self._compiling:
            self._compiling.pop(bucket).result()

    def close(self) -> None:
        """Wait for the program that is being compiled, and begin no other."""
        self._pool.shutdown(cancel_futures=True)


def placed(abstract: Any, shardings: Any) -> Any:
    """Shapes with shardings, in place of arrays."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
