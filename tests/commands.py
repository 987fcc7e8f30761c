"""``python -m dit.NAME`` in a process of its own, as a person starts it."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

from compiling import devices

ROOT = pathlib.Path(__file__).parent.parent
# A small run on digits, for ``dit.train``.
SMALL = (
    *("--config=configs/digits.py", "--config.batch_size=16", "--config.schedule.name=constant"),
    *("--config.model.depth=1", "--config.model.width=16", "--config.model.heads=2"),
    *("--config.samples.every=0", "--config.samples.num=10", "--config.samples.steps=2"),
    "--config.log.every=5",
)


def start(module, *args, before="", **env):
    """The process, on one device; ``env`` is added to the environment; it does ``before`` first."""
    run = f"import runpy; runpy.run_module('dit.{module}', run_name='__main__', alter_sys=True)"
    return subprocess.Popen(
        [
            sys.executable,
            *(("-c", f"{before}\n{run}") if before else ("-m", f"dit.{module}")),
            *args,
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": devices(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HANGS = 900  # seconds: a limit against hanging, which says nothing of how fast a machine must be


def wait_for(condition, process, seconds=HANGS, every=0.05):
    """Until ``condition()`` holds; fails with what the process wrote, should it end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "took too long"
        time.sleep(every)


def free_port():
    """A port that nothing listens on, below those that systems give to connections."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
