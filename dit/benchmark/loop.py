"""What the loop costs besides its steps: ``python -m dit.benchmark.loop [--config=configs/digits.py]``.

Every timing is of ``dit.train`` itself on a config, in a process of its own (``stopwatch``).

*Startup*: seconds from the start of the process until the first step is done, with an empty compilation
cache (``JAX_COMPILATION_CACHE_DIR``) and then with what that run left in it.

*Saving*: runs in pairs, one that saves every ``--interval`` steps and one that does not, over the same
steps. Their difference over the number of saves is what a save costs in all; over the time of the steps
between two saves of the config, it is the share of step time that saving takes. What holds the loop up
directly is timed too; the rest of the cost is steps that are slower while the files are written.
``--config.section.field=value`` overrides a field of the config.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from dit import cli, experiment
from dit.benchmark.machine import versions
from dit.benchmark.report import duration, publish
from dit.types import Count, Range, UserError

PARTS = (
    "imports",
    "config and data",
    "program",
    "step compiled; state, logs, first batch",
    "first step",
)
FIRST = 2  # steps of a run whose start is timed


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dit benchmark.loop", description=__doc__)
    add = parser.add_argument
    add("--config", default="configs/digits.py", help="(default: %(default)s)")
    add(
        "--starts",
        type=cli.number(Count),
        default=3,
        help="runs from an empty cache (default: %(default)s)",
    )
    add(
        "--pairs",
        type=cli.number(Count),
        default=5,
        help="with and without saving (default: %(default)s)",
    )
    add(
        "--saves",
        type=cli.number(Count),
        default=8,
        help="in each run that saves (default: %(default)s)",
    )
    add(
        "--interval",
        type=cli.number(Annotated[int, Range(4, 2**31 - 1)]),
        default=24,
        help="steps between them (default: %(default)s)",
    )
    add("--dir", help="where the runs are kept meanwhile: what disk is written to")
    add("--out", help="write the report here as JSON")
    add("--readme", help="a Markdown file whose table of this report (named as --out) to renew")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input, and for a run that fails."""
    args, overrides = cli.parse(arguments(), argv)
    if args.readme and not args.out:
        raise UserError("--readme names its table after --out; give both")
    config = experiment.load_config(args.config, overrides)
    given = [f"--config={args.config}", *(f"--config.{k}={v}" for k, v in overrides.items())]
    stop = window(args.interval, args.saves)[1] + 1
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        runs = Runs(pathlib.Path(folder), given)
        starts: dict[str, list[dict[str, float]]] = {"empty": [], "filled": []}
        for i in range(args.starts):
            for name in starts:
                starts[name].append(runs.start(FIRST, cache=f"compiled-{i}"))
                print(f"{name} cache: {sum(starts[name][-1].values()):.1f} s", flush=True)
        pairs = []
        every = [f"--config.checkpoint.every={n}" for n in (args.interval, 10**6)]
        for n in range(args.pairs):
            turn = 1 if n % 2 else -1  # each goes first as often
            taken = [runs.watched(stop, "compiled-0", option)[0] for option in every[::turn]]
            pairs.append(taken[::turn])
            print(f"pair {len(pairs)} of {args.pairs}", flush=True)
    result = {
        "config": args.config,
        **({"overrides": overrides} if overrides else {}),
        "device": pairs[0][0]["device"],
        "versions": versions(("jax", "orbax-checkpoint")),
        "start": {name: startup(found) for name, found in starts.items()},
        "saving": saving(pairs, args.interval, args.saves, config.checkpoint.every),
    }
    publish(result, table(result), args.out, args.readme)


class Runs:
    """Runs of one config, each with a fresh workdir under ``folder``."""

    def __init__(self, folder: pathlib.Path, given: Sequence[str]):
        self._folder, self._given, self._count = folder, given, 0

    def start(self, stop: int, cache: str) -> dict[str, float]:
        """Seconds of each part of the start."""
        taken, before = self.watched(stop, cache)
        ends = [before, *(taken["marks"][name] for name in PARTS)]
        return dict(zip(PARTS, np.diff(ends).tolist(), strict=True))

    def watched(self, stop: int, cache: str, *options: str) -> tuple[dict[str, Any], float]:
        """What the stopwatch took of a run of ``stop`` steps, and when its process was started."""
        self._count += 1
        workdir = self._folder / f"run-{self._count}"
        out = self._folder / f"{workdir.name}.json"
        command = [sys.executable, "-m", "dit.benchmark.stopwatch", str(out), str(stop)]
        before = time.time()
        done = subprocess.run(
            [*command, *self._given, f"--workdir={workdir}", *options],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(self._folder / cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not out.exists():
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise UserError(f"a run of the benchmark ended with status {done.returncode}: {last}")
        return json.loads(out.read_text()), before


def window(interval: int, saves: int) -> tuple[int, int]:
    """The steps between which a run is timed: ``saves`` saves, and half an interval on both sides.

    The first save of the run lies before: it compiles the programs that fingerprint arrays.
    """
    first = interval + interval // 2
    return first, first + saves * interval


def startup(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Statistics of starts: of the whole, and the median of each part."""
    return {
        "seconds": summary([sum(parts.values()) for parts in found]),
        "parts": {name: float(np.median([parts[name] for parts in found])) for name in PARTS},
        "runs": len(found),
    }


def saving(
    pairs: Sequence[Sequence[Mapping[str, Any]]], interval: int, saves: int, every: int
) -> dict[str, Any]:
    """The cost of a save from pairs of runs, with and without; UserError if writes overlap.

    ``step``: seconds without saving. ``stall``: that the loop is held up by one save. ``save``: all
    that a save costs, by the difference of a pair. ``slower``: what is left of that. ``share``: of the
    time of ``every`` steps. ``first``: the stall of a run's first save, which is not in the others.
    """
    first, last = window(interval, saves)
    steps, costs, stalls, firsts, written = [], [], [], [], []
    for with_saves, without in pairs:
        took = [run["steps"][last] - run["steps"][first] for run in (with_saves, without)]
        inside = [seconds for step, seconds in with_saves["saves"] if first < step <= last]
        if len(inside) != saves or without["saves"]:
            raise UserError(
                f"got {len(inside)} saves where {saves} were due; is the config shorter?"
            )
        busy = {step for step in with_saves["writing"] if first < step <= last}
        if last in busy or any(step in busy for step, _ in with_saves["saves"]):
            raise UserError(
                f"a save took longer than {interval // 2} steps; give a larger --interval"
            )
        steps.append(took[1] / (last - first))
        costs.append((took[0] - took[1]) / saves)
        stalls.append(float(np.median(inside)))
        firsts.append(with_saves["saves"][0][1])
        written.append(len(busy) / saves)
    return {
        "every": every,
        "interval": interval,
        "saves": saves,
        "pairs": len(pairs),
        "step": summary(steps),
        "first": summary(firsts),
        "stall": summary(stalls),
        "save": summary(costs),
        "slower": summary([a - b for a, b in zip(costs, stalls, strict=True)]),
        "steps_written": float(np.median(written)),
        "share": summary([a / (every * b) for a, b in zip(costs, steps, strict=True)]),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": float(np.median(values)),
        "min": float(min(values)),
        "max": float(max(values)),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown, with the conditions it was measured under."""
    empty, filled, cost = (*report["start"].values(), report["saving"])
    lines = [
        "| startup of `dit.train` | nothing compiled yet | compiled before |",
        "|---|---|---|",
        f"| first step done | {_range(empty['seconds'])} | {_range(filled['seconds'])} |",
    ]
    for name in PARTS:
        cells = (duration(found["parts"][name]) for found in (empty, filled))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    share = {k: f"{v:.2%}" for k, v in cost["share"].items()}
    rows = {
        "the loop is held up by the first save": _cells(cost["first"]),
        "by each of the others": _cells(cost["stall"]),
        f"steps are slower meanwhile, {cost['steps_written']:.3g} of them, by": _cells(
            cost["slower"]
        ),
        "each costs in all": _cells(cost["save"]),
        f"share of step time, a save every {cost['every']} steps": (
            f"{share['median']} | {share['min']} to {share['max']}"
        ),
    }
    lines += ["", "| saving | median | range |", "|---|---|---|"]
    lines += [f"| {name} | {cells} |" for name, cells in rows.items()]
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    conditions = (
        f"`{report['config']}` on {report['device']}; {empty['runs']} starts of each kind; "
        f"{cost['pairs']} pairs of runs with {cost['saves']} saves and without, steps of "
        f"{duration(cost['step']['median'])}; {versions}."
    )
    return "\n".join([*lines, "", conditions])


def _cells(found: Mapping[str, float]) -> str:
    return f"{duration(found['median'])} | {duration(found['min'])} to {duration(found['max'])}"


def _range(found: Mapping[str, float]) -> str:
    return f"{duration(found['median'])} ({found['min']:.2f} to {found['max']:.2f})"


if __name__ == "__main__":
    cli.run(main)
