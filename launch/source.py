"""The code that a launcher copies to the workers: the last commit, or the current files."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Sequence

import common

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHOWN = 20
# A tree of the current files, made without touching the user's index.
AS_IT_IS = (
    'cd "$1" && export GIT_INDEX_FILE="$2.index" && git add --all && '
    'git archive --format=tar.gz --output="$2" "$(git write-tree)"; '
    'status=$?; rm -f "$2.index"; exit "$status"'
)


def archive(file: str, uncommitted: bool) -> list[str]:
    """The command that writes the code to ``file``, a .tar.gz."""
    if uncommitted:
        return ["bash", "-c", AS_IT_IS, "archive", str(ROOT), file]
    return ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={file}", "HEAD"]


def complaint(command: Sequence[str], uncommitted: bool) -> str | None:
    """What would be left behind, if anything: uncommitted files, or the command's config."""
    states = ("status", "--porcelain", "-z", "--untracked-files=all", "--", ".")
    changed = [] if uncommitted else _git(*states)
    if changed is None:
        return f"{ROOT} is no git repository, which the workers' code is taken from: clone it"
    if changed:
        shown = [f"  {line}" for line in changed[:SHOWN]]
        shown += [f"  and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        return "\n".join(
            [
                "the workers get the last commit, and these are not in it:",
                *shown,
                "commit them, or give --uncommitted to send the files as they are",
            ]
        )
    config = common.option(command, "--config")
    if config is None or ((ROOT / config).is_file() and _is_sent(config, uncommitted)):
        return None
    return (
        f"--config={config} is not among the files that the workers get: give a file of {ROOT}, by "
        "its path from there, that git does not ignore"
    )


def _is_sent(path: str, uncommitted: bool) -> bool:
    more = ("--others", "--exclude-standard") if uncommitted else ()
    relative = not pathlib.PurePosixPath(path).is_absolute()
    return relative and bool(_git("ls-files", "-z", "--cached", *more, "--", f":(literal){path}"))


def _git(*words: str) -> list[str] | None:
    """The entries that a git command prints; None if it fails."""
    done = common.run(["git", "-C", str(ROOT), *words], stdout=subprocess.PIPE)
    return None if done.returncode else [line for line in done.stdout.split("\0") if line]
