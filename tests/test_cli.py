"""The command lines: silly numbers, labels and paths, and devices that are not there, in one line."""

import argparse
import os
import pathlib
import subprocess
import sys

import pytest

from dit import cli, convert, storage
from dit import evaluate as evaluation
from dit import sample as sampling
from dit import train as training
from dit.benchmark import __main__ as benchmark
from dit.benchmark import loop
from dit.preflight import __main__ as preflight
from dit.scaling import __main__ as scaling
from dit.types import Range, UserError, first_line

ENTRIES = {
    "dit.train": training,
    "dit.sample": sampling,
    "dit.evaluate": evaluation,
    "dit.convert": convert,
    "dit.preflight": preflight,
    "dit.benchmark": benchmark,
    "dit.benchmark.loop": loop,
    "dit.scaling": scaling,
}
SILLY = [
    "-1",
    "1,,2",
    "1,nan",
    "nan",
    "inf",
    "-inf",
    "1e300",
    str(10**30),
    "three",
    "",
    "true",
    "none",
    "[1]",
    "²",
]


def parsers(parser, before=()):
    """A parser and those of its commands, with the words before their options."""
    yield parser, list(before)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                yield from parsers(each, [*before, name])


OPTIONS = [
    (entry, before, action)
    for entry, module in ENTRIES.items()
    for parser, before in parsers(module.arguments())
    for action in parser._actions
    if action.option_strings
]
NUMBERS = [(e, b, a) for e, b, a in OPTIONS if a.type is not None]


def needed(entry, before, but):
    """The options that must be there, and one that must not."""
    for parser, words in parsers(ENTRIES[entry].arguments()):
        if words == before:
            for action in parser._actions:
                if action.required and action.option_strings and action.dest != but:
                    yield f"{action.option_strings[0]}=1"


@pytest.mark.parametrize(
    ("entry", "before", "action"), NUMBERS, ids=lambda x: getattr(x, "dest", str(x))
)
def test_a_silly_number_is_refused_in_one_line(entry, before, action):
    option, parser = action.option_strings[-1], ENTRIES[entry].arguments()
    others = [*before, *needed(entry, before, action.dest)]
    said = rf"{option}: got .*; expected (a (whole )?number|HEIGHTxWIDTH)"
    for text in SILLY:
        if (action.dest, text) == ("guidance", "-1"):
            continue  # away from the condition: it has a meaning
        with pytest.raises(UserError, match=said) as error:
            cli.parse(parser, [*others, f"{option}={text}"])
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("entry", "before", "action"), OPTIONS, ids=lambda x: getattr(x, "dest", "")
)
def test_no_option_reads_numbers_without_a_range(entry, before, action):
    assert action.type not in (int, float), "give it type=cli.number(...) of dit.types"
    if action.type is not None and action.default is not None:
        made = action.type(str(action.default))
        assert isinstance(action.default, str) or made == action.default


@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_options_are_one_line(entry):
    for argv in (["--nonsense"], ["--nonsense=1"], [], ["--config.steps"]):
        try:
            cli.parse(ENTRIES[entry].arguments(), argv)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 (no options at all are right for some)


@pytest.mark.parametrize("address", ["", " ", "\t"])
@pytest.mark.parametrize("of", [storage.place, storage.local])
def test_an_empty_path_is_not_the_directory_where_one_stands(address, of):
    with pytest.raises(UserError, match="expected the name of a directory or file"):
        of(address)


WORKDIR = [(e, b, a) for e, b, a in OPTIONS if a.dest in ("workdir", "dir") and a.required]


@pytest.mark.parametrize(
    ("entry", "before", "action"), WORKDIR, ids=lambda x: getattr(x, "dest", str(x))
)
def test_no_entry_point_takes_an_empty_workdir(entry, before, action, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*before, f"{action.option_strings[0]}="]
    if entry == "dit.train" or before == ["plan"]:
        argv.append("--config=digits")
    if before == ["plan"]:
        argv += ["--smallest=1e3", "--largest=1e4"]
    with pytest.raises(UserError, match="got the path ''"):
        ENTRIES[entry].main(argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("²", "got label '²'"),
        ("3,7-5", "got labels '7-5'; expected the lower one first: 5-7"),
        ("0-99999999999", "got label 99999999999; expected numbers from 0 to 9"),
        ("9" * 5000, "got label 99999999999999999999; expected numbers"),
        ("1--2", "got label '1--2'"),
        ("-", "got label '-'"),
        ("1-", "got label '1-'"),
        ("1.5", "got label '1.5'"),
        (",", "got labels ','"),
        ("0x1", "got label '0x1'"),
    ],
)
def test_bad_labels_are_named(text, message):
    with pytest.raises(UserError, match=message):
        cli.parse_labels(text, 10)


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dit.train", "--config=digits", f"--workdir={tmp_path / 'run'}"],
        env={**os.environ, "JAX_PLATFORMS": "cuda", "XLA_FLAGS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: JAX finds no device with JAX_PLATFORMS='cuda'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_point_runs_under_the_same_guard(entry):
    text = pathlib.Path(ENTRIES[entry].__file__).read_text()
    assert text.rstrip().endswith('if __name__ == "__main__":\n    cli.run(main)')


def test_a_failure_with_devices_stays_what_it_is(monkeypatch):
    def fail(_):
        raise RuntimeError("something else")

    monkeypatch.setattr(
        cli, "keep_freed_memory", lambda: None
    )  # all other tests run in this process
    with pytest.raises(RuntimeError, match="something else"):
        cli.run(fail)


def test_a_number_is_of_its_type_and_range():
    from typing import Annotated

    of = cli.number(Annotated[float, Range(0, 2)])
    assert of("1") == 1.0
    assert isinstance(of("1"), float)
    with pytest.raises(argparse.ArgumentTypeError, match=r"got '3'; expected a number in \[0, 2\]"):
        of("3")


def test_the_reason_of_a_long_error_is_kept():
    """The command's status depends on it; it stands behind the path of a file, which may be long."""
    path = "/deep" * 200
    line = first_line(
        RuntimeError(f"RESOURCE_EXHAUSTED: writing {path}: No space left on device\nat")
    )
    assert line.startswith("RESOURCE_EXHAUSTED: writing /deep")
    assert line.endswith("/deep: No space left on device")
    assert len(line) < 500
    assert first_line(KeyError()) == "KeyError"
