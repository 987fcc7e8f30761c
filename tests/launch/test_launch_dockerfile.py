"""The Dockerfile, as far as it can be followed without Docker: what it copies, and what it installs."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from launch_tools import LAUNCH, shellcheck, stand_in

ROOT = LAUNCH.parent
TEXT = (LAUNCH / "Dockerfile").read_text()
STEPS = [  # (instruction, the rest), with continued lines as one
    tuple(line.split(None, 1))
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
PIP = 'printf "%s\\n" "$@" >"$MADE"'


def of(instruction):
    return [rest for name, rest in STEPS if name == instruction]


def ignored(path):
    """By the rules of a .dockerignore: the last pattern that matches a path or a parent decides."""
    found = False
    for line in (LAUNCH / "Dockerfile.dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        parts = path.split("/")
        heads = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        names = [pattern, pattern.removeprefix("**/")]
        if any(fnmatch.fnmatch(head, name) for head in heads for name in names):
            found = not line.startswith("!")
    return found


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """What the COPY lines make of the repository, in the image's working directory."""
    folder = tmp_path_factory.mktemp("image")
    for rest in of("COPY"):
        *sources, target = rest.split()
        for source in sources:
            assert not ignored(source), source
            if (ROOT / source).is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, folder / target, ignore=skip)
            else:
                shutil.copy(ROOT / source, folder / target)
    return folder


def run_step(context, tmp_path, **args):
    """Follow the RUN line with these build arguments; what pip is asked for."""
    (script,) = of("RUN")
    defaults = dict(re.match(r'(\w+)="?([^"]*)"?$', rest).groups() for rest in of("ARG"))
    env = {**os.environ, **defaults, **args, "MADE": str(tmp_path / "pip")}
    env.update(stand_in(tmp_path / "bin", "pip", PIP))
    done = subprocess.run(
        ["sh", "-c", script], env=env, cwd=context, capture_output=True, text=True, check=False
    )
    asked = (tmp_path / "pip").read_text().splitlines() if done.returncode == 0 else []
    return done, asked


@pytest.mark.parametrize(
    ("args", "extras"),
    [
        ({}, {"gcs", "tpu"}),
        ({"ACCELERATOR": "gpu"}, {"gcs", "gpu"}),
        ({"ACCELERATOR": "cpu"}, {"gcs"}),
        ({"ACCELERATOR": "gpu", "EXTRAS": ",wandb"}, {"gcs", "gpu", "wandb"}),
    ],
)
def test_each_kind_installs_extras_that_there_are(args, extras, context, tmp_path):
    done, asked = run_step(context, tmp_path, **args)
    assert done.returncode == 0, done.stderr
    found = set(re.fullmatch(r"\.\[(.*)\]", asked[-1])[1].split(","))
    assert found == extras
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{name}": [' in setup for name in found)


def test_another_kind_is_refused(context, tmp_path):
    done, _ = run_step(context, tmp_path, ACCELERATOR="rocm")
    assert done.returncode == 2
    assert "expected tpu, gpu or cpu" in done.stderr


def test_the_steps_are_good_shell():
    for script in of("RUN"):
        shellcheck(f"#!/bin/sh\nexport ACCELERATOR EXTRAS\n{script}\n", "--shell=sh")


def test_what_is_copied_is_all_that_a_run_needs(context):
    """setup.py reads what it needs, and the configs, the package and the launchers are there."""
    code = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(code, cwd=context, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\S*", done.stdout.strip().splitlines()[-1])
    for folder in ("configs", "dit", "launch"):
        here = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.py")}
        assert here == {p.relative_to(context) for p in (context / folder).rglob("*.py")}
    assert not any(ignored(str(path)) for path in here)
    code = [sys.executable, "launch/local.py", "-n", "1", "--dry-run", "--", "true"]
    assert subprocess.run(code, cwd=context, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("path", [".git", "tests", "runs", "dit/__pycache__", "notebooks", ".venv"])
def test_nothing_else_is_sent(path):
    assert ignored(path)


def test_the_readme_says_how_to_build_it():
    readme = (LAUNCH / "README.md").read_text()
    (line,) = [x for x in readme.splitlines() if x.startswith("docker build")]
    words = shlex.split(line)
    assert "--file=launch/Dockerfile" in words
    assert words[-1] == "."
    names = {rest.partition("=")[0] for rest in of("ARG")}
    given = [w.split("=")[1] for w in words if w.startswith("--build-arg=")]
    assert given
    assert set(given) <= names
