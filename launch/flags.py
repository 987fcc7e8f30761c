"""The environment of every worker, and why it is so: the one table that all launchers use.

    eval "$(python launch/flags.py v5e)"        # or v4, v5p, v6e, tpu7x, gpu, cpu

prints it as shell commands. The compiler's flags are those that ``dit.preflight`` compiles with. Values
that a worker's environment already has are kept: its own compiler flags come last and so win, and its
other variables are not changed, except ``DIT_STOPPED_STATUS``, on which the launchers rely.
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
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the launchers restart such a run
FAILED = 2  # bad input or a diverged run, which would fail in the same way again
MERGED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # lists of flags, in which the last one wins


def environment(chip: str) -> dict[str, str]:
    """The variables for one kind of chip, except the cache of compiled programs."""
    found = {
        # Distinguish a run that a signal stopped, which is to be resumed, from a finished one.
        "DIT_STOPPED_STATUS": str(STOPPED),
        # Log lines appear as soon as they are written.
        "PYTHONUNBUFFERED": "1",
        # In a log file, every update of a progress bar is a line: update it rarely.
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
    """The same as lines of bash: the limit on open files, the variables, and the user's variables.

    ``cache``: the directory or gs:// address for compiled programs. ``network``: lines from
    ``networks.py``. ``env``: pairs that override everything else.
    """
    # Data files, checkpoint shards and connections all count as open files.
    lines = ['ulimit -n "$(ulimit -Hn)"']
    for name, value in environment(chip).items():
        word = common.quote(value)
        if name in MERGED:
            lines.append(f'export {name}={word}"${{{name}:+ ${name}}}"')
        elif name == "DIT_STOPPED_STATUS":
            lines.append(f"export {name}={word}")
        else:
            lines.append(_unless_set(name, word))
    # Compiling takes minutes, and a restart compiles the same programs.
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
