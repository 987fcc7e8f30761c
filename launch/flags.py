"""What the environment of every worker holds, and why: the one table that all launchers use.

    eval "$(python launch/flags.py v5e)"        # or v4, v5p, v6e, tpu7x, gpu, cpu

prints it as shell commands. The compiler's flags are those that ``dit.preflight`` compiles with. What a
worker's environment holds already is kept: compiler's flags come after these, and so win; any other
variable stays as it is, but for ``DIT_STOPPED_STATUS``, which the launchers rely on.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import common

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from dit.parallel.flags import TPUS, variables

CHIPS = (*TPUS, "gpu", "cpu")
CACHE = "${HOME:-/tmp}/.cache/dit-compiled"  # for the worker's shell to expand
STOPPED = 75  # "try again later" of sysexits.h: the launchers start such a run again
FAILED = 2  # bad input, or a diverged run: it would end in the same way again
MERGED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # lists of flags, of which the last one wins


def environment(chip: str) -> dict[str, str]:
    """The variables for one kind of chip, but for the cache of compiled programs."""
    found = {
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


def shell(
    chip: str,
    cache: str | None = None,
    network: Sequence[str] = (),
    env: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """The same as lines of bash: the limit on open files, the variables, and those of the user.

    ``cache``: a directory, or gs://, of compiled programs. ``network``: lines of ``networks.py``.
    ``env``: pairs that go before everything else.
    """
    # Data files, shards of checkpoints and connections are all open files.
    lines = ['ulimit -n "$(ulimit -Hn)"']
    for name, value in environment(chip).items():
        word = common.quote(value)
        if name in MERGED:
            lines.append(f'export {name}={word}"${{{name}:+ ${name}}}"')
        elif name == "DIT_STOPPED_STATUS":
            lines.append(f"export {name}={word}")
        else:
            lines.append(_unless_set(name, word))
    # Compiling takes minutes, and is the same after every restart.
    if cache is None:
        lines.append(_unless_set("JAX_COMPILATION_CACHE_DIR", f'"{CACHE}"'))
    else:
        lines.append(f"export JAX_COMPILATION_CACHE_DIR={common.quote(cache)}")
    lines += network
    for name, value in env:
        before = f'"${{{name}:+${name} }}"' if name in MERGED else ""
        lines.append(f"export {name}={before}{common.quote(value)}")
    return lines


def _unless_set(name: str, word: str) -> str:
    return f'[ -n "${{{name}:-}}" ] || export {name}={word}'


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="launch/flags.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("chip", choices=CHIPS)
    parser.add_argument("--cache", help=f"where compiled programs are kept; by default {CACHE}")
    args = parser.parse_args()
    print("\n".join(shell(args.chip, args.cache)))
