"""The training loop, from the first line to the last in the order in which things happen.

The host looks at the device only at log steps, and when it saves or draws: in between it sends off steps
and batches, at most ``AHEAD`` steps before the device. What is logged was summed on the device.

On several processes each runs this same loop. They compare configs and programs before the first
step, and the signal that stops one of them stops all after the same step; process 0 alone locks the
workdir and writes logs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import dit
from dit import rng, storage
from dit.data.pipeline import Batches
from dit.parallel import compiler, multihost
from dit.parallel.frozen import identities
from dit.parallel.peak import peak_flops
from dit.training import feed, scores
from dit.training.ahead import AheadOfTime, placed
from dit.training.checkpoint import Checkpoints
from dit.training.learning import Learning, constant_of
from dit.training.logging import MetricsLog, Progress, find_wandb
from dit.training.meter import means
from dit.training.program import Program, program
from dit.training.signals import StopOnSignal
from dit.training.state import TrainState
from dit.training.workdir import lock, plain, tell, write_config
from dit.types import Key, UserError

AHEAD = 2  # steps the host may be before the device


class DivergedError(UserError):
    """The loss or the gradient stopped being finite."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where training ended, saved unless at step 0. ``stopped``: the signal that ended it, or None."""

    state: TrainState
    step: int
    stopped: str | None = None


def train(
    experiment: Any,
    workdir: str | storage.Place,
    *,
    batches: Batches,
    draw: Callable[[TrainState, int], None] | None = None,
    scorer: scores.Scorer | None = None,
    flops_per_example: float | None = None,
    devices: Sequence[jax.Device] | None = None,
    compiled: Program | None = None,
    progress: bool = True,
    allowed: Collection[str] = (),
) -> Outcome:
    """Train until ``config.steps``, from the latest sound checkpoint in ``workdir`` if there is one.

    ``experiment``: what ``dit.experiment.build`` makes of a config. ``batches``: its training data.
    ``draw(state, step)`` is called every ``samples.every`` steps, and ``scorer(state, step)``, whose
    figures have a row of the log, every ``scores.every`` and at the end: after the step is saved, so
    that a run that is killed meanwhile scores it when it goes on. ``flops_per_example``: of a training
    step, forward and backward, for the utilisation. ``compiled``: the ``program`` of an experiment that
    differs in its seed alone, to compile nothing twice. ``allowed``: keys in which the config of a
    resumed run may differ, besides the operational ones (``workdir.OPERATIONAL``). The first SIGINT or
    SIGTERM, to any process, saves and returns. Raises DivergedError, and UserError for a bad config, a
    workdir in use or of another config, and processes that do not run the same.
    """
    workdir = storage.workdir(workdir)
    config = experiment.config
    saving, logging, sampling = map(experiment.settings, ("checkpoint", "log", "samples"))
    steps = config.steps
    resolved = plain(config)
    if logging.wandb and multihost.is_main():
        find_wandb()  # before any work
    multihost.agree("the config", lambda: json.dumps(resolved, sort_keys=True))
    multihost.agree("the version of jax or dit", lambda: f"{jax.__version__} {dit.__version__}")

    run = program(experiment, batches, devices) if compiled is None else compiled
    key = jax.jit(lambda: rng.root(config.seed), out_shardings=run.replicated)()
    frozen = identities(experiment.frozen, run.mesh)
    multihost.agree("the frozen weights", lambda: json.dumps(frozen, sort_keys=True))
    main = multihost.is_main()

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopOnSignal())  # until everything is on disk
        held = _nothing
        if main:
            held = stack.enter_context(lock(workdir))
            write_config(workdir, resolved, allowed)
        checkpoints = Checkpoints(
            workdir,
            resolved,
            saving.keep,
            example=experiment.example,
            frozen=frozen,
            allowed=allowed,
        )
        stack.callback(checkpoints.close)
        stack.callback(batches.close)

        restored = checkpoints.restore(placed(run.abstract, run.shardings))
        if restored is None and allowed:
            raise UserError(
                f"there is no checkpoint in {workdir} to go on from with another {', '.join(allowed)}: "
                "set it by --config"
            )
        if restored is not None:
            batches.set_state(restored[1])
        target = placed(run.abstract.params, run.shardings.params)
        given = experiment.initial(target) if restored is None else None
        if given is not None:
            multihost.agree("what it begins with", lambda: given.origin)
        step = 0 if restored is None else int(restored[0].step)
        multihost.agree("the step to go on from", lambda: str(step))
        ahead_of_time = AheadOfTime(run, batches, key, steps - step)
        multihost.agree("the program of a step", ahead_of_time.text)
        stack.callback(ahead_of_time.close)
        if step < steps:  # while all else is made ready
            ahead_of_time.start()
        state = restored[0] if given is None else _created(run, key, given.params)
        skipped = int(state.meter.skipped)
        fed = feed.Feed(batches, run.batch_sharding)

        metrics_log = None
        if main:
            metrics_log = MetricsLog(workdir, step, config=resolved, wandb=logging.wandb)
            stack.callback(metrics_log.close)
        bar = Progress(step, steps, shown=progress and main)
        stack.callback(bar.close)
        if restored is not None and main:
            changes = checkpoints.changes
            now = f", with changes: {tell(changes)}" if changes else ""
            bar.say(f"going on from step {step} in {workdir}{now}")
        if given is not None and given.origin and main:
            bar.say(f"beginning with {len(given.params)} arrays, {given.origin}")
        constant = constant_of(experiment, batches) if main else None
        each = batches.examples
        learning = Learning(constant, step=step, steps=steps, batch=each, every=logging.every)
        under_way = collections.deque()
        if scorer is not None:
            scorer.prepare()
            due = restored is not None and scores.is_due(experiment, scorer, step)
            if due and scores.is_missing(workdir, step):
                scores.score(scorer, state, step, metrics_log, bar)
        simulated = run.mesh.size > 1 and run.mesh.devices.flat[0].platform == "cpu"
        ahead = 0 if simulated else AHEAD  # their collectives deadlock with two steps under way
        highest = multihost.HighestOfAll(run.mesh, lag=ahead)
        stopped = 0
        saved = step if restored is not None else None
        fed.fill()
        ahead_of_time.wait(fed.bucket)
        rate = Rate(each, flops_per_example, run.mesh)
        by_shape = LossByShape(feed.bucket_shapes(batches))

        while step < steps and not (stopped := highest(stop.number)):
            if len(ahead_of_time) > 1:
                with rate.paused():
                    ahead_of_time.wait(fed.bucket)
            bucket = fed.bucket
            state, metrics = run.train_step(state, fed.take(), key)
            fed.fill()
            by_shape.note(bucket, metrics["loss"])
            step += 1
            rate.count()
            bar.advance()
            checkpoints.check()
            under_way.append(metrics["loss"])
            if len(under_way) > ahead:
                under_way.popleft().block_until_ready()

            log_now = step % logging.every == 0 or step == steps
            score_now = scores.is_due(experiment, scorer, step)
            save_now = step % saving.every == 0 or step == steps or score_now
            draw_now = draw is not None and sampling.every and step % sampling.every == 0
            if not (log_now or save_now or draw_now):
                continue
            row = _look(run, state, saved, workdir)
            if row["skipped"] > skipped and main:
                bar.say(_skipped(step, row["skipped"] - skipped, row["skipped"]))
            skipped = row["skipped"]
            if log_now:
                row = {**row, **by_shape.means(), **learning.row, **rate.measure()}
                learning.note(row)
                if metrics_log is not None:
                    metrics_log.write(row)
                bar.show(row)
            with rate.paused():
                if save_now:
                    held()
                    if metrics_log is not None:
                        metrics_log.flush()
                    checkpoints.save(step, state, fed.position)
                    saved = step
                if draw_now:
                    draw(state, step)
                if score_now:
                    scores.score(scorer, state, step, metrics_log, bar)
        if step not in (0, saved):  # stopped by a signal, which may come at any point of a step
            _look(run, state, saved, workdir)
            held()
            if metrics_log is not None:
                metrics_log.flush()
            checkpoints.save(step, state, fed.position)
    learning.conclude(step)  # last, where it is seen
    return Outcome(state, step, signal.Signals(stopped).name if stopped else None)


def _nothing() -> None:
    """For processes other than 0: process 0 holds the workdir."""


def _look(run: Program, state: TrainState, saved: int | None, workdir: storage.Place) -> dict:
    """What the device reports; DivergedError if an update was withheld."""
    row = jax.device_get(run.report(state))
    meter, step = row.pop("meter"), int(row.pop("step"))
    if meter.bad:
        raise DivergedError(_diverged(step + 1, int(meter.skipped), saved, workdir))
    return {"step": step, **means(meter), **row, "skipped": int(meter.skipped)}


class LossByShape:
    """``loss/1x16x24``: the mean loss of the batches of each shape between two rows of the log.

    Nothing where all examples have one shape. The losses stay on the device until a row is written. They
    are not saved: in the first row after a resume, they are those of the steps since.
    """

    def __init__(self, shapes: dict[int, feed.Shapes]):
        self._names = {i: "x".join(map(str, s["x"].shape[1:4])) for i, s in shapes.items()}
        self._losses: dict[str, list[jax.Array]] = {}

    def note(self, bucket: int, loss: jax.Array) -> None:
        """The loss of a step on a batch of this bucket, still under way."""
        if len(self._names) > 1:
            self._losses.setdefault(f"loss/{self._names[bucket]}", []).append(loss)

    def means(self) -> dict[str, float]:
        """The means since the last call, without batches whose loss is not finite (skipped)."""
        losses, self._losses = jax.device_get(self._losses), {}
        finite = {name: [x for x in row if np.isfinite(x)] for name, row in losses.items()}
        return {name: float(np.mean(row)) for name, row in sorted(finite.items()) if row}


class Rate:
    """Steps a second between two looks at the device, not counting what was paused."""

    def __init__(self, batch_size: int | float, flops_per_example: float | None, mesh: Mesh):
        self._batch, self._flops, self._mesh = batch_size, flops_per_example, mesh
        self._peak: float | None = None
        self._start, self._steps = time.perf_counter(), 0

    def count(self) -> None:
        """One more step has been sent off."""
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before

    def measure(self) -> dict[str, float]:
        """The rates since the last call, which must follow a look at the device."""
        rate = self._steps / max(time.perf_counter() - self._start, 1e-9)
        rates = {"steps_per_s": rate, "images_per_s": rate * self._batch}
        if self._flops:
            if self._peak is None:  # which may have to be timed, while nothing else runs
                self._peak = peak_flops(self._mesh.local_devices[0]) * self._mesh.size
            rates["mfu"] = rates["images_per_s"] * self._flops / self._peak
        self._start, self._steps = time.perf_counter(), 0
        return rates


def _created(run: Program, key: Key, given: dict[str, jax.Array]) -> TrainState:
    once = compiler.options(run.mesh.devices.flat[0].platform, once=True)
    return jax.jit(run.create, out_shardings=run.shardings, compiler_options=once)(key, given)


def _skipped(step: int, new: int, total: int) -> str:
    return (
        f"up to step {step}: {new} more batches were skipped, as their loss or gradient was not "
        f"finite ({total} in this run)"
    )


def _diverged(step: int, skipped: int, saved: int | None, workdir: storage.Place) -> str:
    kept = "there is no checkpoint yet" if saved is None else f"the last checkpoint is step {saved}"
    before = f" after {skipped} batches that were skipped" if skipped else ""
    lower = "Lower optimizer.lr" if saved is None else "Go on with a lower rate (--new-lr)"
    return (
        f"the loss or the gradient of step {step} is not finite{before}; that update was not made, and "
        f"{kept} in {workdir}. {lower}, allow more skipped batches (optimizer.skip), or begin anew with "
        "optimizer.clip or a longer warm-up"
    )
