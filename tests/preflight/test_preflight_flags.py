"""What is predicted is what is launched: the flags that the TPU compiler is given."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from dit.parallel import flags
from dit.preflight import __main__ as command
from dit.types import UserError

VARIABLE = "LIBTPU_INIT_ARGS"
CONFIG = pathlib.Path(__file__).parents[2] / "configs/digits.py"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without the variable; and what a test sets is taken back."""
    monkeypatch.setenv(VARIABLE, "x")
    monkeypatch.delenv(VARIABLE)
    return monkeypatch


@pytest.mark.parametrize("chip", flags.TPUS)
def test_a_chip_is_compiled_for_as_it_is_launched(chip):
    command.set_flags(f"{chip}:4x4", None)
    assert os.environ[VARIABLE] == flags.variables(chip)[VARIABLE]


def test_other_flags_take_their_place(environment):
    environment.setenv(VARIABLE, "--xla_mine=1")
    command.set_flags("v5e:4x4", None)
    assert os.environ[VARIABLE] == "--xla_mine=1"
    command.set_flags("v5e:4x4", "--xla_a=true --xla_b=2")
    assert os.environ[VARIABLE] == "--xla_a=true --xla_b=2"
    command.set_flags("v5e:4x4", "none")
    assert os.environ[VARIABLE] == ""


def test_other_devices_have_no_such_flags():
    command.set_flags("cpu:8", None)
    command.set_flags("", None)
    assert VARIABLE not in os.environ
    with pytest.raises(UserError, match="'cpu:8'"):
        command.set_flags("cpu:8", "none")
    with pytest.raises(UserError, match="expected 'none', or flags"):
        command.set_flags("v5e:4x4", "latency")


def test_launchers_read_the_table_without_jax():
    code = "import sys, dit.parallel.flags; print(*sys.modules)"
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded <= {*sys.stdlib_module_names, "dit", "__main__"}


@pytest.mark.slow
def test_the_compiler_hears_them(tmp_path):
    """In processes of their own: libtpu reads its flags once, and refuses one that it does not know."""
    pytest.importorskip("libtpu")
    out = tmp_path / "report.json"

    def preflight(*given):
        options = [f"--config={CONFIG}", "--topology=v5e:2x2", "--mesh=fsdp", "--batch=32"]
        options += ["--config.model.depth=1", "--config.model.width=64"]
        options += ["--config.model.heads=2", f"--out={out}", *given]
        command = [sys.executable, "-m", "dit.preflight", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    unknown = preflight("--flags=--xla_no_such_flag=true")
    assert unknown.returncode != 0
    assert "xla_no_such_flag" in unknown.stderr
    launched = preflight()
    assert launched.returncode == 0, launched.stderr
    assert "flags: as launched" in launched.stdout
    (found,) = json.loads(out.read_text())
    assert found["flags"] == flags.variables("v5e")[VARIABLE]
