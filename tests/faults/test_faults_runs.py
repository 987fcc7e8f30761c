"""``python -m dit.train`` itself, stopped while it samples: the real sampler, to the same state."""

import os
import subprocess
import sys

import pytest
from commands import ROOT, SMALL
from compiling import devices
from multihost_job import rows

from dit.training.checkpoint import read_meta

pytestmark = pytest.mark.slow
RUN = [
    *("-m", "dit.train", *SMALL),
    *("--config.steps=12", "--config.log.every=1", "--config.samples.every=6"),
]


def run(arguments, workdir, **env):
    env = {**os.environ, "XLA_FLAGS": devices(), "JAX_PLATFORMS": "cpu", **env}
    command = [sys.executable, *arguments, f"--workdir={workdir}"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_sigterm_while_samples_are_drawn(tmp_path, note):
    """The signal comes from within the sampler, in the midst of the run."""
    script = (
        "import os, runpy, signal, sys\n"
        "from dit import draw\n"
        "call = draw.Sampler.__call__\n"
        "def drawn(self, params):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return call(self, params)\n"
        "draw.Sampler.__call__ = drawn\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('dit.train', run_name='__main__', alter_sys=True)\n"
    )
    straight_dir = tmp_path.parent / "straight"
    done = run(["-c", script, *RUN[1:]], tmp_path, DIT_STOPPED_STATUS="17")
    assert done.returncode == 17, done.stderr
    assert "SIGTERM: step 6 is saved" in done.stdout
    assert (tmp_path / "samples" / "step_0000006.png").exists()  # the picture is finished
    again, straight = run(RUN, tmp_path), run(RUN, straight_dir)
    assert again.returncode == straight.returncode == 0, again.stderr + straight.stderr
    assert read_meta(tmp_path)["arrays"] == read_meta(straight_dir)["arrays"]
    assert rows(tmp_path) == rows(straight_dir)
    note("SIGTERM", "while samples are drawn, dit.train", done.stdout.strip())
