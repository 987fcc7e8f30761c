"""One process of a job, for test_parallel_multihost: the real loop on the very small model.

Usage: multihost_worker.py WORKDIR JSON, with DIT_COORDINATOR and the rest in the environment. The JSON
holds ``config`` (changes to the config) and what goes wrong: ``at`` (a step) and ``fault``; or what
this process ``says`` to the others, one number a call, instead of training.
"""

import json
import os
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent / "training"))


def main(workdir: pathlib.Path, given: dict) -> None:
    from dit.parallel import multihost

    multihost.initialize()
    import jax
    import training_fake as fake
    import training_tiny as tiny

    from dit.training import loop
    from dit.training.fingerprints import fingerprints

    def fail(fault: str) -> None:
        if fault == "raise":
            raise RuntimeError("the disk is on fire")
        elif fault.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[fault])

    if "says" in given:
        highest = multihost.HighestOfAll(tiny.make_mesh({"data": -1}), lag=2)
        heard = [highest(value) for value in given["says"]]
        (workdir / f"heard-{jax.process_index()}.json").write_text(json.dumps(heard))
        return

    with multihost.guard(workdir):
        batches = tiny.batches()
        kind, count = type(batches), iter(range(1_000_000))

        class Failing(kind):
            def __next__(self):
                if next(count) == given.get("at"):
                    (workdir / "failed").write_text(str(time.time()))
                    fail(given["fault"])
                time.sleep(given.get("wait", 0))
                return kind.__next__(self)

        if given.get("fault"):
            batches.__class__ = Failing
        made = fake.Experiment(tiny, given.get("config"))
        outcome = loop.train(made, workdir, batches=batches, progress=False)
        digest = fingerprints(outcome.state)
    said = {"step": outcome.step, "stopped": outcome.stopped, "digest": digest}
    (workdir / f"outcome-{jax.process_index()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
