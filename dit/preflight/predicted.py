"""What training with the shipped configs should take: ``python -m dit.preflight.predicted``.

    python -m dit.preflight.predicted --price=v5e=1.2 --price=v5p=4.2 --price=v6e=2.7

The docstring of a config for a pod names, after ``Check:``, the commands of ``dit.preflight`` that ask
how it would run there. Each is run, in a process of its own, and gives a row of a table: memory, time of
a step, chip-hours to the end of the config's steps, and their cost at the price that ``--price`` gives
for the chip. Everything in it is predicted; nothing is measured.

``--out`` keeps the rows as JSON, each as soon as it is there. Rows that it has from the same versions of
the compiler are taken from it: another price compiles nothing. Remove the file after a change of the
code. ``--readme`` renews the table of that name in a Markdown file.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dit import cli
from dit.benchmark.machine import versions
from dit.benchmark.report import duration, publish
from dit.config_file import directory
from dit.parallel.chips import TPUS
from dit.preflight import __main__ as preflight
from dit.preflight.report import gib
from dit.types import Positive, UserError

KEPT = (
    *("topology", "mesh", "devices", "chips", "images", "remat", "memory", "hbm", "fits", "flags"),
    *("utilisation", "utilisation_without_communication", "steps", "steps_to_end", "hours"),
    *("chip_hours", "cpu_seconds"),
)
Row = dict[str, Any]


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dit preflight.predicted",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--price",
        action="append",
        default=[],
        type=price,
        metavar="CHIP=NUMBER",
        help="of one chip for one hour; repeat it for more chips",
    )
    add("--out", help="keep the rows here as JSON")
    add("--readme", help="a Markdown file whose table of these rows (named as --out) to renew")
    return parser


def price(text: str) -> tuple[str, float]:
    """``v5e=1.2`` as a pair."""
    chip, _, amount = text.partition("=")
    if chip not in TPUS:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected CHIP=NUMBER with one of {', '.join(TPUS)}"
        )
    return chip, cli.number(Positive)(amount)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input, and for a config that cannot be compiled."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.preflight; see --help")
    if args.readme and not args.out:
        raise UserError("--readme names its table after --out; give both")
    commands = checks(directory())
    prices = dict(args.price)
    if missing := sorted({chip_of(words) for words in commands} - prices.keys()):
        wanted = " ".join(f"--price={chip}=NUMBER" for chip in missing)
        raise UserError(f"got no price of {', '.join(missing)}; give {wanted}")
    report: dict[str, Any] = {"versions": made_by(), "rows": []}
    before = kept(args.out, report["versions"])
    for words in commands:
        found = before.get(" ".join(words)) or predicted(words)
        report["rows"].append(found)
        if args.out:  # a row takes minutes
            later = [row for name, row in before.items() if name not in named(report["rows"])]
            whole = {**report, "rows": [*report["rows"], *later]}
            pathlib.Path(args.out).write_text(json.dumps(whole, indent=2) + "\n")
    publish(report, table(report, prices), args.out, args.readme)


def checks(folder: pathlib.Path) -> list[list[str]]:
    """The arguments of each command of ``dit.preflight`` in the docstrings of a folder's configs."""
    found = []
    for file in sorted(folder.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        lines = text.replace("\\\n", " ").splitlines()
        matches = (re.search(r"python -m dit\.preflight (.*)", line) for line in lines)
        found += [shlex.split(match[1]) for match in matches if match]
    return found


def made_by() -> dict[str, str]:
    """The versions of what compiles; UserError where it is missing."""
    try:
        return versions(("jax", "libtpu"))
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            'compiling for TPUs needs libtpu: pip install "dit-jax[preflight]"'
        ) from error


def chip_of(words: Sequence[str]) -> str:
    """The chip that a command asks about."""
    return cli.parse(preflight.arguments(), words)[0].topology.partition(":")[0]


def kept(out: str | None, by: Mapping[str, str]) -> dict[str, Row]:
    """The rows of an earlier report by their commands; none if other versions made it."""
    if out is None or not pathlib.Path(out).exists():
        return {}
    try:
        report = json.loads(pathlib.Path(out).read_text())
        return named(report["rows"]) if report["versions"] == by else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"got --out={out!r}; expected a file of such rows, or none") from error


def named(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by their commands."""
    return {" ".join(row["command"]): row for row in rows}


def predicted(words: Sequence[str]) -> Row:
    """What preflight says, of a train step, in a process of its own: libtpu reads flags only once."""
    print(f"dit.preflight {' '.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "dit.preflight", *words, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, preflight.DOES_NOT_FIT):
        raise UserError(f"dit.preflight {' '.join(words)} ended with status {done.returncode}")
    first = json.loads(done.stdout)[0]
    return {"command": list(words), **{key: first[key] for key in KEPT if key in first}}


def table(report: Mapping[str, Any], prices: Mapping[str, float]) -> str:
    """The report as Markdown, with the prices and what made it."""
    lines = [
        "| config | on | mesh | images a step | memory a chip | a step | utilisation | to the end "
        "| hours | chip-hours | `--price` | cost | compiling |",
        f"|{13 * '---|'}",
        *(f"| {' | '.join(cells(row, prices))} |" for row in report["rows"]),
    ]
    by = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    given = " ".join(f"--price={chip}={amount:g}" for chip, amount in prices.items())
    notes = (
        "**Predicted, not measured**: nothing has run there. From the compiled program of each train "
        f"step ({by}), to the end of the config's steps, without starts, samples and checkpoints. "
        f"Costs are chip-hours times the price that was given by flag (`{given}`), which is no "
        "quotation. Compiling is in seconds of one CPU core."
    )
    return "\n".join([*lines, "", notes])


def cells(row: Row, prices: Mapping[str, float]) -> list[str]:
    """The cells of one row of the table."""
    args, _ = cli.parse(preflight.arguments(), row["command"])
    rest = [w for w in row["command"] if w.partition("=")[0] not in ("--config", "--topology")]
    where = ", ".join([args.topology, *(f"`{word}`" for word in rest)])
    mesh = ", ".join(f"{axis} {n}" for axis, n in row["mesh"].items())
    first = [f"`{pathlib.Path(args.config).stem}`", where, mesh, f"{row['images']:,}"]
    memory = f"{gib(row['memory']['needed'])} of {gib(row['hbm'])}"
    if not row["fits"]:
        return [*first, f"does not fit: {memory}", *[""] * 8]
    if "hours" not in row:
        return [*first, memory, "no prediction", *[""] * 7]
    amount = prices[args.topology.partition(":")[0]]
    images = row["images"] * row.get("each", 1) * row["steps_to_end"]
    return [
        *first,
        memory,
        duration(3600 * row["hours"] / row["steps_to_end"]),
        f"{row['utilisation']:.2f}",
        f"{row['steps_to_end']:,} steps, {images / 1e6:,.1f} M images",
        f"{row['hours']:,.3g}" if row["hours"] < 100 else f"{row['hours']:,.0f}",
        f"{row['chip_hours']:,.0f}",
        f"{amount:g}",
        f"{row['chip_hours'] * amount:,.0f}",
        f"{row['cpu_seconds']:,.0f} s",
    ]


if __name__ == "__main__":
    cli.run(main)
