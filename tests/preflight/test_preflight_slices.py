"""The whole command on every slice of every chip: answered, or refused in one line."""

import functools
import importlib.machinery
import json
import math
import pathlib
import sys
import types

import jax
import pytest

from dit.parallel import chips, topology
from dit.parallel.estimate import StepTime
from dit.parallel.mesh import PRESETS, make_mesh
from dit.preflight import __main__ as command
from dit.preflight import programs
from dit.preflight.report import Report
from dit.types import UserError

UNLAID = [f"tpu7x:{shape}" for shape in ("4x20x20", "4x20x24", "12x20x20", "12x20x24")]
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@functools.cache
def once(function, *settings):
    """``function`` of settings as JSON: configs are the same for every slice."""
    return function(*map(json.loads, settings))


def cached(function):
    return lambda *settings: once(function, *map(json.dumps, settings))


@pytest.fixture
def compiler(monkeypatch):
    """Instead of libtpu: devices in the right number, and programs that take a second and a GiB."""

    def devices(topology_name, num_slices=1, **_):
        chip, _, shape = topology_name.partition(":")
        n = math.prod(map(int, shape.split("x"))) * chips.TPUS[chip].devices * num_slices
        return types.SimpleNamespace(devices=[jax.devices()[0]] * n)

    def train_step(experiment, where):
        return Report(
            what="train step", topology=where.name, mesh={}, devices=len(where.devices),
            chips=where.chips, images=experiment.config.batch_size, steps=3600, tokens=1,
            model_flops=10**9, program_flops=10**9, peak_flops=1e12, hbm=where.hbm,
            remat="none", advice=[], expected_sizes=frozenset(), within={}, fits=True,
            memory={"needed": 2**30}, time=StepTime(1.0, 0.0, 0.0, 0.0),
        )  # fmt: skip

    monkeypatch.setitem(sys.modules, "libtpu", libtpu := types.ModuleType("libtpu"))
    monkeypatch.setattr(libtpu, "__spec__", importlib.machinery.ModuleSpec("libtpu", None))
    monkeypatch.setattr(topology.topologies, "get_topology_desc", devices)
    for name in ("build", "load_config"):
        monkeypatch.setattr(command, name, cached(getattr(command, name)))
    monkeypatch.setattr(programs, "train_step", train_step)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")


@pytest.mark.parametrize("chip", chips.TPUS)
def test_every_slice_is_answered_with_its_chip_hours(chip, compiler, capsys):
    for shape in chips.shapes(chip):
        name, n = f"{chip}:{chips.name_of(shape)}", math.prod(shape)
        options = [f"--topology={name}", "--price=2", "--config.model.depth=1"]
        assert command.main([f"--config={CONFIGS / 'digits.py'}", *options]) == 0
        said = capsys.readouterr().out
        assert f"on {name}: {n * chips.TPUS[chip].devices} devices" in said
        assert f"1 h, {n:,} chip-hours, {2 * n:,} at 2 a chip-hour (predicted" in said.replace(
            f"{n:.3g} ", f"{n} "
        )


@pytest.mark.parametrize("chip", chips.TPUS)
def test_slices_of_several_are_paid_for_together(chip, compiler, capsys):
    shape = chips.shapes(chip)[-1]
    name, n = f"{chip}:{chips.name_of(shape)}", 3 * math.prod(shape)
    options = [f"--topology={name}", "--slices=3", "--config.model.depth=1"]
    assert command.main([f"--config={CONFIGS / 'digits.py'}", *options]) == 0
    assert f"1 h, {n:,} chip-hours (predicted" in capsys.readouterr().out


@pytest.mark.parametrize("chip", chips.TPUS)
@pytest.mark.parametrize("shape", ["", "0x4", "17x17", "3x3x3", "4x4x4x4", "24x24x32", "a"])
def test_no_other_slice_is(chip, shape, compiler):
    with pytest.raises(UserError, match=f"no topology '{chip}:{shape}': {chip} has no slice") as no:
        command.main([f"--config={CONFIGS / 'digits.py'}", f"--topology={chip}:{shape}"])
    assert "\n" not in str(no.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chip", [pytest.param(c, marks=[pytest.mark.exhaustive] * (c == "tpu7x")) for c in chips.TPUS]
)
def test_every_preset_can_be_laid_on_every_torus(chip):
    """Also where an axis of the mesh is no whole axes of the torus: 64 of 16x16.

    JAX's search finds nothing for four slices of the largest chip, which is said.
    """
    pytest.importorskip("libtpu")
    for shape in chips.shapes(chip):
        where = topology.find(f"{chip}:{chips.name_of(shape)}")
        n = len(where.devices)
        sizes = [{"preset": name} for name in PRESETS]
        sizes += [{"data": 4, "fsdp": -1}] if n % 4 == 0 else []
        for each in sizes:
            if where.name in UNLAID and "hsdp" in each.get("preset", ""):
                with pytest.raises(UserError, match="cannot lay on the torus of these"):
                    make_mesh(each, where.devices)
                continue
            mesh = make_mesh(each, where.devices)
            assert mesh.size == n == len({d.id for d in mesh.devices.flat}), (where.name, each)
