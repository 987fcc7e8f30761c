"""For the tests of the launchers: run one, load one, check shell text, put stand-ins on the path."""

import importlib
import os
import pathlib
import subprocess
import sys

LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"
COMMAND = ["python", "-m", "dit.train", "--config=c.py", "--config.x=(1, 2)", "--workdir=/mnt/run"]


def launch(script, *args, env=None, timeout=120, cwd=None):
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


def dry(script, *args):
    """What ``--dry-run`` prints, without the command or with one."""
    cut = args.index("--") if "--" in args else len(args)
    done = launch(script, *args[:cut], "--dry-run", *args[cut:], env={"PATH": "/nonexistent"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(name):
    """A launcher as a module."""
    sys.path.insert(0, str(LAUNCH))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(LAUNCH))


def shellcheck(text, *options):
    """Raise unless shellcheck has nothing to say about a script."""
    command = ["shellcheck", "--shell=bash", *options, "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def stand_in(folder, name, script):
    """Put a program of this name, which runs ``script`` in bash, first on the path that is returned."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{script}\n")
    file.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
