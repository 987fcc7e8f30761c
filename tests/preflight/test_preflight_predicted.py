"""The table of what the shipped configs should take: its commands, its arithmetic, and what it keeps."""

import importlib.metadata
import json
import pathlib
import re
import subprocess
import types

import pytest

from dit import cli
from dit.config_file import directory
from dit.experiment import load_config
from dit.parallel import chips
from dit.preflight import __main__ as preflight
from dit.preflight import predicted
from dit.types import UserError

COMMANDS = predicted.checks(directory())
PRICES = {chip: 1.5 + i for i, chip in enumerate(chips.TPUS)}
GIVEN = [f"--price={chip}={amount}" for chip, amount in PRICES.items()]


def test_every_config_for_a_pod_names_its_check():
    named = {pathlib.Path(cli.parse(preflight.arguments(), words)[0].config) for words in COMMANDS}
    pods = {file.name for file in directory().glob("*_pod.py")}
    assert pods
    assert pods <= {file.name for file in named}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_checks_of_the_configs_can_be_asked(words):
    args, overrides = cli.parse(preflight.arguments(), words)
    preflight.check(args)
    load_config(args.config, overrides)
    chip, _, shape = args.topology.partition(":")
    assert chips.slice_shape(chip, shape)


@pytest.fixture
def asked(monkeypatch):
    """Instead of preflight: a list of the commands, and rows that do not fit on v6e."""
    log = []

    def run(command, **_):
        *words, last = command[3:]
        assert command[1:3] == ["-m", "dit.preflight"]
        assert last == "--json"
        log.append(words)
        fits = not any("v6e" in word for word in words)
        row = {
            "fits": fits, "hbm": 16 * 2**30, "memory": {"needed": 4 * 2**30}, "images": 2048,
            "mesh": {"data": 4, "fsdp": 16}, "cpu_seconds": 60.2,
            "utilisation": 0.5 if fits else None, "collectives": [{"kind": "all-reduce"}],
        }  # fmt: skip
        if fits:
            row |= {"steps_to_end": 50_000, "hours": 20.0, "chip_hours": 5120.0}
        status = 0 if fits else preflight.DOES_NOT_FIT
        return types.SimpleNamespace(returncode=status, stdout=json.dumps([row]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(predicted, "versions", lambda names: dict.fromkeys(names, "1.0"))
    return log


def test_the_table_counts_and_names_what_it_was_given(asked, tmp_path, capsys):
    out, readme = tmp_path / "predicted.json", tmp_path / "README.md"
    readme.write_text("a\n<!-- benchmark: predicted -->\nold\n<!-- end of benchmark -->\nb\n")
    predicted.main([*GIVEN, f"--out={out}", f"--readme={readme}"])
    assert asked == COMMANDS
    said = capsys.readouterr().out
    assert said.strip() in readme.read_text()
    assert "old" not in readme.read_text()
    assert "Predicted, not measured" in said
    rows = [line for line in said.splitlines() if line.startswith("| `")]
    assert len(rows) == len(COMMANDS)
    width = {line.count("|") for line in said.splitlines() if line.startswith("|")}
    assert len(width) == 1
    for words, row in zip(COMMANDS, rows, strict=True):
        chip = predicted.chip_of(words)
        if chip == "v6e":
            assert "does not fit: 4.00 GiB of 16.00 GiB" in row
            continue
        cells = [cell.strip() for cell in row.split("|")]
        # 20 hours over 50,000 steps; 5,120 chip-hours
        wanted = ["1.44 s", "0.50", "50,000 steps, 102.4 M images", "20", "5,120"]
        price = [f"{PRICES[chip]:g}", f"{5120 * PRICES[chip]:,.0f}"]
        assert cells[3] == "data 4, fsdp 16"
        assert cells[6:-1] == [*wanted, *price, "60 s"]
        assert f"--price={chip}={PRICES[chip]:g}" in said
    assert all("collectives" not in row for row in json.loads(out.read_text())["rows"])


def test_another_price_compiles_nothing_and_a_kill_loses_nothing(asked, tmp_path, monkeypatch):
    out = tmp_path / "predicted.json"
    run = subprocess.run

    def killed(command, **how):
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run(command, **how)

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        predicted.main([*GIVEN, f"--out={out}"])
    monkeypatch.setattr(subprocess, "run", run)
    predicted.main([*GIVEN, f"--out={out}"])
    assert asked == COMMANDS
    predicted.main([*(f"--price={chip}=9" for chip in PRICES), f"--out={out}"])
    assert asked == COMMANDS  # nothing again
    made = json.loads(out.read_text())
    out.write_text(json.dumps({**made, "versions": {"libtpu": "0"}}))
    predicted.main([*GIVEN, f"--out={out}"])
    assert asked == 2 * COMMANDS  # of another compiler


def test_the_command_in_the_readme_can_be_asked(asked, tmp_path, monkeypatch, capsys):
    text = (pathlib.Path(__file__).parents[2] / "launch/README.md").read_text()
    (command,) = re.findall(r"^python -m dit\.preflight\.predicted (.*)$", text, re.M)
    monkeypatch.chdir(tmp_path)
    predicted.main(command.split())
    assert asked == COMMANDS
    assert command.split(" --out")[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--price=v5e"], "expected a number"),
        (["--price=h100=3"], "expected CHIP=NUMBER"),
        (["--price=v5e=0"], "expected a number"),
        (["--price=v5e=1"], "no price of v5p, v6e; give --price=v5p=NUMBER --price=v6e=NUMBER"),
        ([*GIVEN, "--readme=README.md"], "give both"),
        ([*GIVEN, "--config.steps=3"], "belongs to dit.preflight"),
        ([*GIVEN, "--out=OUT"], "a file of such rows"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_compiled(asked, argv, message, tmp_path):
    out = tmp_path / "rows.json"
    out.write_text('[{"no": "rows"}]')
    with pytest.raises(UserError, match=message):
        predicted.main([word.replace("OUT", str(out)) for word in argv])
    assert not asked


def test_without_the_compiler_it_says_what_to_install(asked, monkeypatch):
    def missing(_):
        raise importlib.metadata.PackageNotFoundError("libtpu")

    monkeypatch.setattr(predicted, "versions", missing)
    with pytest.raises(UserError, match="pip install"):
        predicted.main(GIVEN)
    assert not asked


def test_a_command_that_fails_is_named(asked, monkeypatch):
    failed = types.SimpleNamespace(returncode=2, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="ended with status 2"):
        predicted.main(GIVEN)


def test_a_row_without_a_prediction_of_time():
    row = {"command": ["--config=x.py", "--topology=tpu7x:4x4x4"], "fits": True, "images": 8}
    row |= {"mesh": {"data": 2, "fsdp": 4}, "hbm": 2**30, "memory": {"needed": 2**29}}
    cells = predicted.cells(row, PRICES)
    assert "no prediction" in cells
    assert len(cells) == 13
