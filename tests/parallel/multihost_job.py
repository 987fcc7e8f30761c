"""Real processes on loopback that run ``multihost_worker.py`` as one job."""

import json
import os
import pathlib
import subprocess
import sys
import time

import compiling
from commands import HANGS, free_port

from dit.training.logging import TIMING, read_metrics

WORKER = pathlib.Path(__file__).parent / "multihost_worker.py"
DP = {"data": -1, "fsdp": 1}
ENDLESS = 1_000_000  # steps


class Job:
    """``count`` processes with ``devices`` each; ``odd`` is what process ``who`` is given besides."""

    def __init__(self, workdir, count, *, devices=1, odd=None, who=-1, env=None, **given):
        workdir.mkdir(exist_ok=True)
        self.workdir, self.processes, port = workdir, [], free_port()
        given["config"] = {"log": {"every": 1}, **given.get("config", {})}
        odd = {**given, **(odd or {})}
        odd["config"] = {**given["config"], **odd["config"]}
        for i in range(count):
            mine = odd if i == who % count else given
            settings = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "XLA_FLAGS": compiling.devices(devices),
                "DIT_COORDINATOR": f"127.0.0.1:{port}",
                "DIT_NUM_PROCESSES": str(count),
                "DIT_PROCESS_ID": str(i),
                **(env or {}),
            }
            self.processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        str(WORKER),
                        mine.get("elsewhere", str(workdir)),
                        json.dumps(mine),
                    ],
                    env=settings,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait(self, seconds=HANGS):
        """The exit status and stderr of each."""
        deadline = time.monotonic() + seconds
        try:
            errors = [
                p.communicate(timeout=max(1, deadline - time.monotonic()))[1]
                for p in self.processes
            ]
        finally:
            for p in self.processes:
                p.kill()
        return [p.returncode for p in self.processes], errors

    def outcomes(self):
        """What each process said at its end, which must be the same."""
        status, errors = self.wait()
        assert set(status) == {0}, errors
        files = [self.workdir / f"outcome-{i}.json" for i in range(len(self.processes))]
        first, *others = [json.loads(f.read_text()) for f in files]
        assert all(other == first for other in others)
        return first


def rows(workdir):
    """What was logged, without what two runs cannot have in common."""
    return [{k: v for k, v in r.items() if k not in TIMING} for r in read_metrics(workdir)]
