"""``dit.train`` with a stopwatch: what ``dit.benchmark.loop`` runs in processes of their own.

    python -m dit.benchmark.stopwatch OUT STEPS --config=FILE --workdir=DIR

The same command line, loop and files as ``python -m dit.train``; the names that the loop calls are
wrapped to take the time, and after ``STEPS`` steps the run gets SIGTERM. ``OUT`` is
then JSON: ``marks``, the time of day at the end of each part of the start; ``steps``, seconds at
which each step was sent off; ``saves``, ``[step, seconds]`` that the loop was held up by each;
``writing``, the steps that were sent off while a checkpoint was being written; and ``device``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from dit.benchmark.machine import describe


class Stopwatch:
    """Takes the times of one run that is to stop after ``stop`` steps."""

    def __init__(self, stop: int):
        self._stop = stop
        self.marks: dict[str, float] = {}
        self.steps: list[float] = []
        self.saves: list[tuple[int, float]] = []
        self.writing: list[int] = []
        self._checkpoints: list[Any] = []

    def mark(self, name: str) -> None:
        """The part of the start called ``name`` has ended."""
        self.marks.setdefault(name, time.time())

    def program(self, make: Callable) -> Callable:
        """``make``, the loop's ``program``, whose steps are counted and timed."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.mark("config and data")
            run = make(*args, **kwargs)
            self.mark("program")
            return dataclasses.replace(run, train_step=self._watched(run.train_step))

        return watched

    def _watched(self, train_step: Callable) -> Callable:
        def step(state: Any, batch: Any, key: Any) -> Any:
            self.mark("step compiled; state, logs, first batch")
            self.steps.append(time.perf_counter())
            if any(checkpoints.writing() for checkpoints in self._checkpoints):
                self.writing.append(len(self.steps))
            out = train_step(state, batch, key)
            if len(self.steps) == 1:
                out[1]["loss"].block_until_ready()
                self.mark("first step")
            if len(self.steps) == self._stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return out

        step.lower = train_step.lower
        return step

    def checkpoints(self, base: type) -> type:
        """The loop's ``Checkpoints``, whose saves are timed until the last step."""
        watch = self

        class Watched(base):
            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **kwargs)
                watch._checkpoints.append(self)

            def save(self, step: int, *args: Any, **kwargs: Any) -> None:
                before = time.perf_counter()
                super().save(step, *args, **kwargs)
                if len(watch.steps) < watch._stop:
                    watch.saves.append((len(watch.steps), time.perf_counter() - before))

            def writing(self) -> bool:
                return self._manager.is_saving_in_progress()

        return Watched

    def as_json(self) -> str:
        """All that was taken."""
        import jax

        names = ("marks", "steps", "saves", "writing")
        taken = {name: getattr(self, name) for name in names}
        return json.dumps(taken | {"device": describe(jax.devices()[0])})


def main(argv: list[str]) -> int:
    """Run ``dit.train`` with the rest of ``argv`` under the watch; its exit status."""
    out, stop, *rest = argv
    watch = Stopwatch(int(stop))
    from dit import train
    from dit.training import loop

    watch.mark("imports")
    loop.program = watch.program(loop.program)
    loop.Checkpoints = watch.checkpoints(loop.Checkpoints)
    status = train.main(rest)
    pathlib.Path(out).write_text(watch.as_json())
    return status


if __name__ == "__main__":
    from dit import cli

    cli.run(lambda _: main(sys.argv[1:]))
