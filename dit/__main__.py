"""All commands by one name: ``dit COMMAND ...``, the same as ``python -m dit.COMMAND ...``.

    dit train --config=digits --workdir=runs/digits
    dit sample --workdir=runs/digits --labels=0,1,2 --out=grid.png

``dit COMMAND --help`` lists the options of a command.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import dit

COMMANDS = {  # name -> (module, what it is for)
    "prepare": ("dit.prepare", "turn raw pictures and captions into records for training"),
    "train": ("dit.train", "train a model from a config, or resume a run"),
    "sample": ("dit.sample", "draw samples from a run, or edit pictures with it"),
    "convert": ("dit.convert", "weights of other implementations in and out, LoRAs too"),
    "embed": ("dit.embed", "embed texts by frozen encoders, for models conditioned on them"),
    "evaluate": (
        "dit.evaluate",
        "score a run's samples against real data, and fail below a given score",
    ),
    "preflight": (
        "dit.preflight.__main__",
        "does a config fit a pod, how fast will it be, what will it cost",
    ),
    "preflight.predicted": (
        "dit.preflight.predicted",
        "what training with the shipped configs should take and cost, as a table",
    ),
    "scaling": ("dit.scaling.__main__", "plan, run and fit a scaling-law sweep"),
    "benchmark": (
        "dit.benchmark.__main__",
        "time training and sampling, optionally beside PyTorch",
    ),
    "benchmark.loop": (
        "dit.benchmark.loop",
        "time the start of a run and the saving of checkpoints",
    ),
}


def usage() -> str:
    """What ``dit --help`` prints."""
    wide = max(map(len, COMMANDS))
    lines = [f"  {name:{wide}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([__doc__ or "", "Commands:", *lines])


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status; 2 and one message for a name that is no command."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(dit.__version__)
    else:
        run(name, rest)


def run(name: str, rest: Sequence[str]) -> None:
    """Run the command ``name`` with the arguments ``rest``, and exit."""
    from dit import cli  # takes a second, which --help should not
    from dit.config import suggest

    def command(_: object) -> int | None:
        if name not in COMMANDS:
            raise cli.UserError(f"unknown command {name!r}; {suggest(name, list(COMMANDS))}")
        return importlib.import_module(COMMANDS[name][0]).main(None)

    sys.argv = [f"dit {name}", *rest]
    cli.run(command)


if __name__ == "__main__":
    main()
