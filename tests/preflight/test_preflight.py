"""Preflight against what is known without it: shapes, formulas, and a TPU compiler that says no."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from dit.experiment import build, load_config
from dit.parallel import chips, topology
from dit.parallel.estimate import StepTime, collective_seconds, step_time
from dit.parallel.hlo import Collective
from dit.preflight import __main__ as command
from dit.preflight import programs
from dit.preflight import report as reports
from dit.scaling.flops import training_flops
from dit.types import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SMALL = [f"--config={CONFIGS / 'digits.py'}", "--topology=cpu:8", "--config.model.depth=2"]


def preflight(tmp_path, *options):
    out = tmp_path / "report.json"
    status = command.main([*SMALL, f"--out={out}", *options])
    return status, json.loads(out.read_text())


def test_the_report_on_simulated_devices(tmp_path, capsys):
    status, (found,) = preflight(tmp_path, "--mesh=fsdp", "--batch=32")
    config = load_config(str(CONFIGS / "digits.py"), {"model.depth": 2})
    experiment = build(config)
    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(experiment.init, jax.random.key(0)))]
    assert status == 0
    assert (found["devices"], found["images"], found["mesh"]) == (8, 32, {"fsdp": 8})
    assert 4 * sum(sizes) / 8 <= found["memory"]["parameters"] <= 1.05 * 4 * sum(sizes) / 8
    np.testing.assert_allclose(
        found["memory"]["optimizer"], 2 * found["memory"]["parameters"], rtol=1e-3
    )
    assert found["model_flops"] == 32 * training_flops(experiment.model, experiment.shape)
    np.testing.assert_allclose(found["program_flops"], found["model_flops"], rtol=0.02)
    parts = {kind: n for kind, n in found["memory"].items() if kind != "needed"}
    assert sum(parts.values()) <= 1.2 * found["memory"]["needed"]
    assert found["within"]["gradients"] == found["memory"]["parameters"]
    assert 0 < found["within"]["activations"] < found["memory"]["temporaries"]
    assert "cost" not in found
    assert found["time"] is None
    kinds = {c["kind"] for c in found["collectives"]}
    assert {"all-gather", "all-reduce"} <= kinds
    assert all(c["axes"] == ["fsdp"] for c in found["collectives"])
    said = capsys.readouterr().out
    assert "8 devices, fsdp=8, 32 images" in said
    assert "unexpected" not in said
    assert re.search(r"gradients +[\d.]+ MiB  of them, by formula", said)
    assert "no prediction of time" in said


@pytest.mark.slow
def test_recomputation_is_seen_and_activations_shrink(tmp_path):
    _, (kept,) = preflight(tmp_path, "--batch=32", "--remat=none")
    _, (again,) = preflight(tmp_path, "--batch=32", "--remat=full")
    assert again["model_flops"] == kept["model_flops"]
    assert 1.2 < again["program_flops"] / kept["program_flops"] < 1.4
    assert again["within"]["activations"] < 0.5 * kept["within"]["activations"]
    assert again["memory"]["temporaries"] < kept["memory"]["temporaries"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh=fdsp"], "fdsp"),
        (["--topology=v9:2x2"], "no topology 'v9:2x2'"),
        (["--topology=cpu:64"], "start afresh"),
        (["--topology=cpu:8", "--slices=2"], "slices"),
        (["--topology=cuda:8:nowhere.textproto"], "GpuTargetConfig"),
        (["--topology=v5e:4x4x4"], "no slice '4x4x4'"),
        (["--batch=7"], "multiple of 8"),
        (["--batch=0"], "batch"),
        (["--mesh=data=x"], "got mesh 'data=x'"),
        (["--remat=everything"], "no remat policy 'everything'"),
        (["--price=0"], "--price: got '0'; expected a number in"),
        (["--price=nan"], "--price: got 'nan'; expected a number in"),
        (["--price=inf"], "--price: got 'inf'; expected a number in"),
        (["--images=0"], "--images: got '0'; expected a whole number in"),
        (["--tries=0", "--sweep"], "--tries: got '0'; expected a whole number in"),
        (["--sweep", "--max-batch"], "one of them at a time"),
        (["--sampler", "--sweep"], "one of them at a time"),
        (["--max-batch", "--batch=8"], "one of them"),
        (["--max-batch"], "memory is known"),
        (["--out=no/such/directory/file.json"], "--out="),
        (["--out=."], "--out="),
        (["--out="], "--out="),
        (["--config.model.depht=3"], "depht"),
        (["--config.model.depth=three"], "depth"),
        (["--config.nowhere.x=1"], "nowhere"),
        (["--config=no/such/file.py"], "no/such/file.py"),
    ],
)
def test_bad_requests_say_so_in_one_line_before_any_work(tmp_path, monkeypatch, options, message):
    def compiled(*_, **__):
        raise AssertionError("work began")

    monkeypatch.setattr(programs, "report", compiled)
    with pytest.raises(UserError, match=message) as caught:
        preflight(tmp_path, *options)
    assert len(str(caught.value).splitlines()) == 1


TPU = topology.Topology("v5e:4x4", (), chips.TPUS["v5e"], 197e12)


def collective(kind, **changes):
    made = Collective(kind, 8 * 10**6, "f32[2000000]", ("fsdp",), 16, 3, "x", False)
    return dataclasses.replace(made, **changes)


def test_times_of_collectives():
    gather = collective_seconds(collective("all-gather"), TPU)
    np.testing.assert_allclose(gather, 3 * 8e6 * 15 / 16 / 9e10)
    reduce = collective_seconds(collective("reduce-scatter"), TPU)
    np.testing.assert_allclose(collective_seconds(collective("all-reduce"), TPU), gather + reduce)
    assert collective_seconds(collective("all-reduce", group=1), TPU) == 0


@pytest.mark.parametrize("name", chips.TPUS)
@pytest.mark.parametrize("slices", [2, 4])
def test_what_goes_between_slices_is_bytes_over_bandwidth(name, slices):
    """A sum over n slices sends 2 (n - 1) / n of its bytes from each chip, at the rate of its share."""
    rates = {"v4": 50, "v5e": 25, "v5p": 50, "v6e": 100, "tpu7x": 50}  # Gbit/s of one device
    where = dataclasses.replace(TPU, chip=chips.TPUS[name], slices=slices)
    sent = collective("all-reduce", axes=("slices",), group=slices)
    by_hand = 3 * 8e6 * 2 * (slices - 1) / slices / (rates[name] * 1e9 / 8)
    np.testing.assert_allclose(collective_seconds(sent, where), by_hand)


def test_communication_hides_behind_work_and_no_further():
    assert StepTime(1.0, 0.5, 1.0, 0.25).total == 1.75
    assert StepTime(1.0, 0.5, 2.0, 0.25).total == 2.25


def test_gathers_that_became_sums_are_advised_against():
    def said(found, **sizes):
        return programs.reduced(found, {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes)

    summed = collective("all-reduce", group=64)
    (advice,) = said([summed], data=2, fsdp=64)
    assert "over 64 chips by all-reduces" in advice
    assert said([dataclasses.replace(summed, axes=("fsdp", "context"))], fsdp=16, context=4)
    gathered = collective("all-gather", group=64, times=4)
    assert not said([summed, gathered], fsdp=64)  # of gradients
    assert not said([collective("all-reduce")], fsdp=16)
    assert not said([dataclasses.replace(summed, axes=("data",))], data=64, fsdp=64)


def test_no_prediction_without_a_chip():
    assert step_time("", [], dataclasses.replace(TPU, chip=None), 0.0) is None


def made_up(**changes):
    values = {
        "what": "train step", "topology": "v5e:2x2", "mesh": {"data": 4}, "devices": 4, "chips": 4,
        "images": 64, "steps": 10, "tokens": 1, "model_flops": 100, "program_flops": 48,
        "peak_flops": 1.0, "hbm": 16 * 2**30, "remat": "none", "advice": [],
        "expected_sizes": frozenset(), "memory": {"parameters": 2**30, "needed": 20 * 2**30},
        "within": {"gradients": 2**30, "activations": 17 * 2**30}, "fits": False,
    }  # fmt: skip
    return reports.Report(**values | changes)


def test_the_table_of_what_does_not_fit():
    said = reports.table(made_up())
    assert "OUT OF MEMORY: needs 20.00 GiB a device of 16.00 GiB" in said
    assert re.search(r"activations +17.00 GiB +of it, by formula\n +gradients +1.00 GiB", said)


def test_what_is_inside_kernels_is_said_to_be_left_out():
    assert reports.program_flops(made_up()).endswith("(0.48 of the model's)")
    one = made_up(kernels={"tpu_custom_call splash_fwd": 4}, kernel_flops=50.0)
    assert reports.program_flops(one).endswith(
        "(0.48 of the model's, without what is inside kernels: 50 by formula, 0.98 together)"
    )
    unknown = made_up(kernels={"__gpu$some": 4})
    assert reports.program_flops(unknown).endswith("without what is inside kernels)")


@pytest.mark.slow
def test_json_alone_on_the_screen(tmp_path, capsys):
    status, rows = preflight(tmp_path, "--json", "--batch=32")
    assert status == 0
    assert json.loads(capsys.readouterr().out) == rows


@pytest.mark.slow
def test_the_tpu_compiler_answers(tmp_path, capsys):
    pytest.importorskip("libtpu")
    config = f"--config={CONFIGS / 'imagenet256_dit_s2.py'}"
    out = tmp_path / "v5e.json"
    few = ["--topology=v5e:2x2", "--config.model.depth=2", f"--out={out}"]
    assert command.main([config, *few, "--batch=32", "--mesh=fsdp"]) == 0
    (found,) = json.loads(out.read_text())
    assert 0.02 < found["utilisation"] <= found["utilisation_without_communication"] < 0.9
    assert found["memory"]["needed"] < found["hbm"] == chips.TPUS["v5e"].hbm
    assert command.main([config, *few, "--batch=131072", "--remat=none"]) == command.DOES_NOT_FIT
    assert "OUT OF MEMORY" in capsys.readouterr().out


@pytest.mark.slow
def test_two_slices_reduce_their_gradients_between_them(tmp_path):
    """Parameters are split within a slice: only the sum of their gradients leaves it, a share a chip."""
    pytest.importorskip("libtpu")
    config, out = f"--config={CONFIGS / 'imagenet256_dit_s2.py'}", tmp_path / "slices.json"
    where = ["--topology=v5e:4x4", "--slices=2", "--mesh=data=4,fsdp=8", "--batch=128"]
    assert command.main([config, *where, "--config.model.depth=2", f"--out={out}"]) == 0
    (found,) = json.loads(out.read_text())
    total = {"slices": 0, "other": 0}
    for c in found["collectives"]:
        total[c["axes"][0]] = total.get(c["axes"][0], 0) + c["bytes"] * c["times"]
    kinds = {(c["kind"], c["group"]) for c in found["collectives"] if c["axes"] == ["slices"]}
    assert kinds == {("all-reduce", 2)}
    # Parameters are float32 and split over 8 chips. Gradients of kernels are bfloat16 and split over
    # 8 or 16, as the compiler sees fit: a half or a quarter. Those of embeddings are float32.
    assert 0.2 < total["slices"] / found["memory"]["parameters"] < 0.6
    assert total["other"] < 0.01 * sum(total.values())
    # A sum over two slices sends each byte once, at 25 Gbit/s a chip.
    made = [Collective(**{**c, "axes": tuple(c["axes"])}) for c in found["collectives"]]
    within = sum(collective_seconds(c, TPU) for c in made if c.axes != ("slices",))
    charged = found["time"]["collectives_async"] + found["time"]["collectives_sync"]
    np.testing.assert_allclose(charged - within, total["slices"] / (25e9 / 8), rtol=1e-6)
