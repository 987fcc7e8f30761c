"""``dit COMMAND``: every entry point has a name there, and runs as ``python -m`` does."""

import importlib
import pathlib
import subprocess
import sys

import pytest

import dit
from dit import __main__ as command

ROOT = pathlib.Path(dit.__file__).parent
# Itself, what a command starts, and what makes a table of the documentation.
FOR_OTHERS = {"dit.__main__", "dit.benchmark.stopwatch", "dit.evaluation.damage"}


def run(*argv):
    return subprocess.run([sys.executable, "-m", "dit", *argv], capture_output=True, text=True)


def test_every_entry_point_is_a_command_and_says_so():
    entries = {
        ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        for file in ROOT.rglob("*.py")
        if '__name__ == "__main__"' in file.read_text()
    }
    commands = {module for module, _ in command.COMMANDS.values()}
    assert entries - FOR_OTHERS == commands
    for name, (module, _) in command.COMMANDS.items():
        assert importlib.import_module(module).arguments().prog == f"dit {name}"
        assert module.removesuffix(".__main__") == f"dit.{name}"  # python -m dit.NAME stays


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_each(argv, capsys):
    command.main(argv)
    said = capsys.readouterr().out
    for name, (_, what) in command.COMMANDS.items():
        assert f"  {name} " in said
        assert what in said


def test_its_arguments_are_those_of_the_command():
    done = run("train", "--config=nowhere.py", "--workdir=x")
    assert done.returncode == 2
    assert "nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr
    assert "usage: dit sample" in run("sample", "--help").stdout


def test_another_name_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["trian", "--config=digits"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "unknown command 'trian'; did you mean 'train'?" in said
    assert said.count("\n") == 1


def test_the_version(capsys):
    command.main(["--version"])
    assert capsys.readouterr().out.strip() == dit.__version__
