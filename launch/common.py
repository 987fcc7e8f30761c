"""What the launchers share: options, quoting, mounts, and running other programs."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # names of clouds and of Kubernetes
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

OURS = ("DIT_STOPPED_STATUS", "DIT_COORDINATOR", "DIT_NUM_PROCESSES", "DIT_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class Mount:
    """``gs://bucket/prefix``, mounted as the directory ``path`` on every host."""

    bucket: str
    prefix: str
    path: str


def parse(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The options before ``--`` and the command after it."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:cut]), argv[cut + 1 :]


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the options that all launchers have."""
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=variable,
        metavar="NAME=VALUE",
        help="set for the workers, after what the launcher sets; repeat it for more",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")


def add_mount(parser: argparse.ArgumentParser) -> None:
    """Add ``--mount``, for the launchers that can mount a bucket."""
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        type=mount,
        metavar="gs://BUCKET:/PATH",
        help="a bucket, or gs://BUCKET/PREFIX, as a directory on every host: for data, not runs",
    )


def variable(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` as a pair."""
    name, equals, value = text.partition("=")
    if not equals or not VARIABLE.fullmatch(name):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected NAME=VALUE")
    if name in OURS:
        raise argparse.ArgumentTypeError(f"{name} is set by the launcher, which relies on it")
    return name, value


def mount(text: str) -> Mount:
    """``gs://BUCKET/PREFIX:/PATH`` as a Mount."""
    found = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]+)(?:/([\w./-]*))?:(/[\w./-]+)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected gs://BUCKET:/PATH")
    return Mount(found[1], (found[2] or "").strip("/"), found[3].rstrip("/"))


def dns_name(most: int) -> Any:
    """A type for argparse: a name of at most ``most`` characters that is valid in DNS."""

    def check(text: str) -> str:
        if not DNS.fullmatch(text) or len(text) > most:
            raise argparse.ArgumentTypeError(
                f"got {text!r}; expected at most {most} lower-case letters, digits and hyphens, "
                "the first a letter"
            )
        return text

    return check


def quote(word: str) -> str:
    """A word quoted for bash, on one line whatever it contains."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        f"\\{c}" if c in "\\'" else c if c.isprintable() else "".join(f"\\x{b:02x}" for b in raw)
        for c, raw in ((c, c.encode("utf-8", "surrogateescape")) for c in word)
    )
    # An escaped byte has exactly two digits, whatever follows.
    return f"$'{escaped}'"


def join(words: Sequence[str]) -> str:
    """A command quoted for bash, on one line."""
    return " ".join(quote(word) for word in words)


def option(command: Sequence[str], name: str) -> str | None:
    """The last value of an option of a command, such as ``--workdir``; None if it is missing."""
    found = None
    for word, after in zip(command, [*command, None][1:], strict=True):
        if word.startswith(f"{name}="):
            found = word.partition("=")[2]
        elif word == name:
            found = after
    return found


def inside(path: str, folder: str) -> bool:
    """Whether a path is that directory or is inside it."""
    return pathlib.PurePosixPath(path).is_relative_to(folder)


def check_workdir(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error if the command's workdir is in a mounted bucket."""
    workdir = option(args.command, "--workdir") or ""
    for one in args.mount:
        if inside(workdir, one.path):
            address = "/".join(filter(None, (f"gs://{one.bucket}", one.prefix)))
            rest = workdir.removeprefix(one.path)
            parser.error(
                f"--workdir={workdir} is in a mounted bucket, which cannot replace a file in one "
                f"step; give --workdir={address}{rest}"
            )


def wants_buckets(args: argparse.Namespace) -> bool:
    """Whether the command, its variables or the cache name a ``gs://`` address."""
    words = [*args.command, args.cache or "", *(value for _, value in args.env)]
    return any("gs://" in word for word in words)


def run(command: Sequence[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """Run another program; exit with one line if it is not installed."""
    try:
        return subprocess.run(command, text=True, check=False, **how)
    except FileNotFoundError:
        sys.exit(f"{command[0]} was not found: install it, or put it on the PATH")
