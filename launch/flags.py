"""What the environment of every worker holds, and why: the one table that all launchers use.

    eval "$(python launch/flags.py v5e)"        # or v4, v5p, v6e, gpu, cpu

prints it as shell commands. The compiler's flags are those that ``dit.preflight`` compiles with.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from dit.parallel.flags import TPUS, variables

CHIPS = (*TPUS, "gpu", "cpu")
CACHE = "/tmp/dit-compiled"
STOPPED = 75  # "try again later" of sysexits.h: the launchers start such a run again


def environment(chip: str, cache: str = CACHE) -> dict[str, str]:
    """The variables for one kind of chip. ``cache``: a directory, or gs://, of compiled programs."""
    found = {
        # Compiling takes minutes, and is the same after every restart.
        "JAX_COMPILATION_CACHE_DIR": cache,
        # Tell a run that a signal stopped, to be gone on with, from one that is finished.
        "DIT_STOPPED_STATUS": str(STOPPED),
        # Lines of a log that come when they are written.
        "PYTHONUNBUFFERED": "1",
        # A bar in a log file is a line at a time: seldom is enough.
        "TQDM_MININTERVAL": "30",
        **variables(chip),
    }
    if chip == "gpu":
        # JAX takes three quarters of the memory by default; the rest is for NCCL and cuDNN.
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    return found


def shell(chip: str, cache: str = CACHE) -> str:
    """The same as shell commands, and the limit on open files."""
    lines = [
        f"export {name}={shlex.quote(text)}" for name, text in environment(chip, cache).items()
    ]
    # Data files, shards of checkpoints and connections are all open files.
    return "\n".join(['ulimit -n "$(ulimit -Hn)"', *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="launch/flags.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("chip", choices=CHIPS)
    parser.add_argument("--cache", default=CACHE, help="where compiled programs are kept")
    args = parser.parse_args()
    print(shell(args.chip, args.cache))
