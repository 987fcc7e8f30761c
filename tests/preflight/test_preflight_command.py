"""The searches of the command line, whole but for the compiler: on a TPU that needs only its table."""

import json
import math
import pathlib
import re

import pytest

from dit.parallel.estimate import StepTime
from dit.parallel.mesh import make_mesh
from dit.preflight import __main__ as command
from dit.preflight import programs
from dit.preflight.report import Report

pytest.importorskip("libtpu")

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CONFIG = f"--config={CONFIGS / 'digits.py'}"
MIB = 2**20


@pytest.fixture
def compiler(monkeypatch):
    """Instead of a compiler: memory that grows with the images of a device, half of it without remat.

    ``compiler.each``: bytes an image; ``compiler.made``: what was compiled; ``compiler.slowness``: of
    the step of a shape.
    """

    class Fake:
        each = 100 * MIB
        made = ()
        slowness = staticmethod(lambda shape: 1.0)

        def __call__(self, experiment, where):
            config = experiment.config
            mesh = dict(make_mesh(experiment.settings("mesh"), where.devices).shape)
            images = config.batch_size // len(where.devices)
            needed = images * self.each // (1 if experiment.model.remat == "none" else 2) + 5 * MIB
            self.made = (*self.made, (str(mesh), experiment.model.remat, config.batch_size))
            slow = 2.0 if experiment.model.remat == "full" else 1.0
            slow *= self.slowness(experiment.shape)
            return Report(
                what="train step", topology=where.name, mesh=mesh, devices=len(where.devices),
                chips=where.chips, images=config.batch_size, steps=config.steps, tokens=1,
                model_flops=10**9, program_flops=10**9, peak_flops=where.peak, hbm=where.hbm,
                remat=experiment.model.remat, advice=[], expected_sizes=frozenset(),
                memory={"parameters": MIB, "temporaries": needed, "needed": needed},
                within={"gradients": MIB, "activations": needed}, fits=needed <= where.hbm,
                time=StepTime(slow * config.batch_size / 100, 0.0, 0.0, 0.0),
            )  # fmt: skip

    fake = Fake()
    monkeypatch.setattr(programs, "train_step", fake)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    return fake


def test_the_largest_batch_is_found_and_shown(compiler, capsys, tmp_path):
    out = tmp_path / "report.json"
    options = [CONFIG, "--topology=v5e:2x2", "--mesh=fsdp", "--max-batch", f"--out={out}"]
    assert command.main([*options, "--remat=none", "--price=2"]) == 0
    most = int((15.75 * 1024 - 5) // 100) * 4
    (found,) = json.loads(out.read_text())
    assert most - most // 32 <= found["images"] <= most
    assert f"the largest batch that fits is {found['images']}" in capsys.readouterr().out
    assert found["cost"] == pytest.approx(found["chip_hours"] * 2)
    assert len(compiler.made) <= 6


@pytest.mark.parametrize("search", ["--max-batch", "--sweep"])
def test_hours_of_several_shapes_are_of_their_mean_step(compiler, capsys, search):
    """By their shares; all shapes are compiled for what fits, the largest alone for what does not."""
    compiler.slowness = lambda shape: math.prod(shape)
    options = [f"--config={CONFIGS / 'mixed.py'}", "--topology=v5e:2x2", "--mesh=fsdp"]
    assert command.main([*options, "--remat=none", search, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    pixels = {256: 8000, 384: 12000, 1024: 5000, 2048: 3000}
    mean = sum(size * n for size, n in pixels.items()) / 28000
    assert row["step_seconds"] == pytest.approx(row["images"] / 100 * mean)
    assert row["hours"] == pytest.approx(row["steps_to_end"] * row["step_seconds"] / 3600)
    batches = [batch for *_, batch in compiler.made]
    assert batches.count(row["images"]) == 5


def test_no_batch_fits(compiler, capsys):
    compiler.each = 20 * 2**30
    options = [CONFIG, "--topology=v5e:2x2", "--mesh=fsdp", "--max-batch", "--remat=full"]
    assert command.main(options) == 0  # one image takes half of that
    compiler.each = 40 * 2**30
    assert command.main(options) == command.DOES_NOT_FIT
    said = capsys.readouterr().out
    assert "OUT OF MEMORY" in said
    assert "no mesh, remat policy or batch is enough" in said


@pytest.mark.slow
def test_a_sweep_finds_its_mesh_resumes_and_counts_cost(compiler, capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    options = [CONFIG, "--topology=v5e:2x4", "--sweep", "--tries=3", f"--out={rows}", "--price=2"]
    assert command.main([*options, "--images=1000000"]) == 0
    said = capsys.readouterr().out
    first = compiler.made
    assert len(first) == len(set(first)) == len(rows.read_text().splitlines()) >= 3
    ranked = re.findall(r"^  (--mesh=\S+ --remat=\S+ --batch=\d+)", said, re.M)
    assert len(ranked) == len(first)
    assert len(re.findall(r"chip-hours, .* at 2 a chip-hour", said)) >= 3
    assert command.main([*options, "--json"]) == 0
    assert compiler.made == first  # nothing was compiled again
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found] == ranked
    assert command.main([*options, "--config.model.depth=1"]) == 0
    assert len(compiler.made) > len(first)  # another model is another row


@pytest.mark.slow
def test_a_sweep_in_which_nothing_fits(compiler, capsys):
    compiler.each = 80 * 2**30
    assert command.main([CONFIG, "--topology=v5e:2x2", "--sweep"]) == command.DOES_NOT_FIT
    assert "does not fit" in capsys.readouterr().out


def test_status_and_advice_of_what_does_not_fit(compiler, capsys):
    compiler.each = 4 * 2**30
    options = [CONFIG, "--topology=v5e:2x2", "--mesh=dp", "--batch=32"]
    assert command.main(options) == command.DOES_NOT_FIT
    line = capsys.readouterr().out.splitlines()[-1]
    given = re.findall(r"--(?:remat|batch|mesh)=\S+", line)
    assert given
    changed = [*options, *given]  # the last of an option counts
    for _ in range(6):
        if command.main(changed) == 0:
            break
        changed += re.findall(
            r"--(?:remat|batch|mesh)=\S+", capsys.readouterr().out.splitlines()[-1]
        )
    else:
        raise AssertionError("advice that leads nowhere")
