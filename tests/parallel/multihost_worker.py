"""One process of a job, for ``multihost_job.py``: the real loop on the very small model.

Usage: multihost_worker.py WORKDIR JSON, with DIT_COORDINATOR and the rest in the environment. The JSON
holds ``config`` (changes to the config), ``workers`` (of the loader), ``mixed`` (true for examples of
several shapes) and what goes wrong: ``fault`` (a signal's name, ``raise`` or ``loader``, a signal to a
process that reads data) and ``at``: the number of a batch, ``compile``, ``draw``, or ``write`` or
``commit`` of the checkpoint of step 10. Or it holds what this process ``says`` to the others, one
number a call, instead of training; the workdir ``elsewhere`` that this process is given; a step whose
checkpoint is ``unreadable`` to it; the ``seconds`` for which it looks for a workdir that all share.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent / "training"))
sys.modules["torch"] = None  # where it is installed tensorboardX would take seconds to import it
RENAMED = {"write": r"/checkpoints/10\.[^/]*/", "commit": r"/checkpoints/10$"}


class Fault:
    """Strikes once, at its place."""

    def __init__(self, workdir, fault, at=None):
        self.workdir, self.fault, self.at = workdir, fault, at
        self._count, self._struck = iter(range(1_000_000)), threading.Event()

    def strike(self):
        if self._struck.is_set():
            return
        self._struck.set()
        (self.workdir / "failed").write_text(str(time.time()))
        if self.fault == "raise":
            raise RuntimeError("the disk is on fire")
        if self.fault == "loader":
            multiprocessing.active_children()[0].kill()
        else:
            os.kill(os.getpid(), signal.Signals[self.fault])

    @contextlib.contextmanager
    def within(self, place):
        """Strike from another thread soon after the main one has come to the place, which it leaves
        after that."""
        if self.at == place and not self._struck.is_set():
            threading.Timer(0.05, self.strike).start()
        yield
        if self.at == place:
            self._struck.wait()
            (self.workdir / "left").write_text(str(time.time()))

    def batch(self):
        if next(self._count) == self.at:
            self.strike()

    def audit(self, event, args):
        """Watches renames, by which a checkpoint and each of its parts take their names."""
        if event == "os.rename" and re.search(RENAMED[self.at], os.fspath(args[1])):
            self.strike()


def main(workdir: pathlib.Path, given: dict) -> None:
    from dit.parallel import multihost

    multihost.initialize()
    import jax
    import jax.numpy as jnp
    import training_fake as fake
    import training_mixed as mixed
    import training_tiny as tiny

    from dit.parallel.fingerprints import fingerprints
    from dit.training import checkpoint, loop

    if "says" in given:
        highest = multihost.HighestOfAll(tiny.make_mesh({"data": -1}), lag=2)
        heard = [highest(value) for value in given["says"]]
        (workdir / f"heard-{jax.process_index()}.json").write_text(json.dumps(heard))
        return

    multihost.SHARED_SECONDS = given.get("seconds", multihost.SHARED_SECONDS)
    fault = Fault(workdir, given.get("fault"), given.get("at"))
    model, data = (mixed.MODEL, mixed) if given.get("mixed") else (tiny, tiny)
    batches = data.batches(size=16, workers=given.get("workers", 0))
    kind, program = type(batches), loop.program

    class Read(kind):
        def __next__(self):
            fault.batch()
            time.sleep(given.get("wait", 0))
            return kind.__next__(self)

    class Lowered:
        """The program of a step, to be compiled."""

        def __init__(self, lowered):
            self._lowered, self.as_text = lowered, lowered.as_text

        def compile(self):
            with fault.within("compile"):
                return self._lowered.compile()

    class Step:
        """A jitted step that says when it is compiled."""

        def __init__(self, step):
            self._step = step

        def lower(self, *args):
            return Lowered(self._step.lower(*args))

        def __call__(self, *args):
            return self._step(*args)

    mean = jax.jit(lambda x: jnp.mean(jnp.tanh(x)))

    def draw(state, step):
        """A computation over the parameters by all processes for 0.3 seconds, as sampling is."""
        with fault.within("draw"):
            for _ in range(30):
                mean(state.params["in"]["kernel"]).block_until_ready()
                time.sleep(0.01)

    def with_compiled(*args):
        run = program(*args)
        return dataclasses.replace(run, train_step=Step(run.train_step))

    if "unreadable" in given:
        read = checkpoint._read_arrays

        def read_arrays(manager, step, *args):
            """As if this host alone saw nothing but junk there."""
            if step == given["unreadable"]:
                raise checkpoint.DamagedError("its arrays cannot be read: junk")
            return read(manager, step, *args)

        checkpoint._read_arrays = read_arrays
    batches.__class__ = Read
    loop.program = with_compiled
    if fault.at in RENAMED:
        sys.addaudithook(fault.audit)
    with multihost.guard(workdir):
        experiment = fake.Experiment(model, given.get("config"))
        outcome = loop.train(experiment, workdir, batches=batches, draw=draw, progress=False)
        digest = fingerprints(outcome.state)
    said = {"step": outcome.step, "stopped": outcome.stopped, "digest": digest}
    (workdir / f"outcome-{jax.process_index()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    from dit import cli

    cli.run(lambda _: main(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])))
