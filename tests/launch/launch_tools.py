"""For the tests of the launchers: run one, load one, check shell text, put stand-ins on the path."""

import atexit
import contextlib
import functools
import importlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HANGS = 300  # seconds: a limit against hanging, not on how slow a machine may be
LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"
COMMAND = [
    "python",
    "-m",
    "dit.train",
    "--config=c.py",
    "--config.x=(1, 2)",
    "--workdir=gs://b/run",
]
NASTY = {
    "spaces": " a  b ",
    "single": "it's",
    "double": 'a "b" c',
    "dollar": "$HOME $(id) `id` $$ $$$(X) ${A}",
    "semicolon": "a; exit 3 & | > x",
    "newline": "a\nb\r\tc",
    "backslash": "a\\nb\\",
    "unicode": "naïve 猫 😀 \u2028 \x85",
    "braces": "{a} {0} %j %",
    "comment": "a #b",
    "empty": "",
}


def launch(script, *args, env=None, timeout=HANGS, cwd=None):
    """Run ``launch/SCRIPT``: the finished process, with its output as text."""
    return subprocess.run(
        [sys.executable, str(LAUNCH / script), *args],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        cwd=cwd,
        check=False,
    )


@functools.cache
def only_git():
    """A folder with git and no other program."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="only-git-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "git").symlink_to(shutil.which("git"))
    return str(folder)


def dry(script, *args):
    """What ``--dry-run`` prints, without the command or with one; nothing but git can be run."""
    cut = args.index("--") if "--" in args else len(args)
    module, out = load(script.removesuffix(".py")), io.StringIO()
    before = os.environ["PATH"]
    os.environ["PATH"] = only_git()
    try:
        with contextlib.redirect_stdout(out):
            assert module.main([*args[:cut], "--dry-run", *args[cut:]]) == 0
    finally:
        os.environ["PATH"] = before
    return out.getvalue()


def expanded(text, env=()):
    """What Kubernetes makes of a container's argument: ``$(NAME)`` of its variables, and ``$$``."""

    def one(match):
        name = match[1]
        return "$" if name is None else dict(env).get(name, match[0])

    return re.sub(r"\$(?:\$|\(([^)]*)\))", one, text)


def directives(script):
    """The options of a batch script, split as Slurm's sbatch does it."""
    found = []
    for line in script.splitlines():
        if line and not line.startswith("#"):
            break  # sbatch looks no further
        if not line.startswith("#SBATCH"):
            continue
        words, word, mark, rest = [], None, "", iter(line.removeprefix("#SBATCH") + " ")
        for c in rest:
            if c == "\\":
                word = (word or "") + next(rest)
            elif mark:
                mark, word = ("", word) if c == mark else (mark, word + c)
            elif c in "'\"":
                mark, word = c, word or ""
            elif c == "#":
                break
            elif not c.isspace():
                word = (word or "") + c
            elif word is not None:
                words.append(word)
                word = None
        assert not mark, line
        assert len(words) == 1, line
        found += words
    return found


def load(name):
    """A launcher as a module."""
    sys.path.insert(0, str(LAUNCH))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(LAUNCH))


def shellcheck(text, *options):
    """Raise unless shellcheck has nothing to say about a script."""
    near = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [shutil.which("shellcheck", path=near), "--shell=bash", *options, "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def stand_in(folder, name, script):
    """Put a program of this name, which runs ``script`` in bash, first on the path that is returned."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{script}\n")
    file.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
