"""The most memory of a command, which this process's own must not colour.

Linux counts to a process what its parent held when it was started (``fork``, then ``exec``), and a
test's worker may hold gigabytes by then. So a small process starts the command.
"""

import subprocess
import sys

STARTER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def run(*command, **kwargs):
    """What the command prints, and the most bytes that it or a process of its own held (Linux)."""
    done = subprocess.run(
        [sys.executable, "-c", STARTER, *command], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, peak = done.stdout.splitlines()
    return lines, int(peak) * 1024
