"""``python -m dit.NAME`` in a process of its own, as a person starts it."""

import os
import pathlib
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


def start(module, *args, **env):
    """The process, on one device; ``env`` is added to the environment."""
    return subprocess.Popen(
        [sys.executable, "-m", f"dit.{module}", *args],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": devices(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process, seconds=240, every=0.05):
    """Until ``condition()`` holds; fails with what the process wrote, should it end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "took too long"
        time.sleep(every)


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
