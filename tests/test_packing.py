"""Packed examples through a config: their step, its account, what is refused, and a run that resumes."""

import dataclasses
import json

import pytest
from test_shapes import DATA, SHAPES

from dit import experiment, sample, train
from dit.parallel import topology
from dit.preflight import buckets
from dit.scaling.costs import one_shape
from dit.scaling.flops import training_flops
from dit.training.feed import bucket_shapes
from dit.types import UserError
from dit.wired import check_packing

CONFIG = {
    "steps": 4,
    "batch_size": 8,
    "data": DATA,
    "model": {"name": "dit", "depth": 1, "width": 16, "heads": 2, "patch": 4},
    "path": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "packing": {"tokens": 40},
}


def made(**changes):
    return experiment.build({**CONFIG, **changes})


def test_a_packed_step_is_one_and_is_accounted_for_by_its_rows():
    one = made()
    batches = one.batches()
    assert list(bucket_shapes(batches)) == [0]
    assert bucket_shapes(batches)[0]["x"].shape == (8, 40, 16)
    assert bucket_shapes(batches)[0]["label"].shape == (8, 40 // 9)
    (report,) = buckets.train_steps(one, topology.find(""))
    assert (report.images, report.tokens) == (8, 320)
    tokens = [9, 12, 18]
    mean = sum(n * share for n, share in zip(tokens, one.shares, strict=True))
    assert report.images * report.each == pytest.approx(320 / mean)
    flops = sum(
        share * training_flops(one.model, (*shape, 1))
        for share, shape in zip(one.shares, SHAPES, strict=True)
    )
    assert report.model_flops == pytest.approx(320 / mean * flops, rel=1e-6)
    assert buckets.largest(one.config).packed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {**CONFIG["model"], "block": "in_context"}}, "block 'in_context' cannot tell"),
        ({"model": {"name": "unet", "size": "DDPM-32"}}, "network UNet cannot take packed"),
        ({"packing": {"examples": 3}}, "packing.examples without packing.tokens"),
        ({"model": {**CONFIG["model"], "concat_channels": 1}}, "leave out one of"),
    ],
    ids=["block", "network", "examples", "concat"],
)
def test_what_cannot_take_packed_examples_is_named(changes, says):
    with pytest.raises(UserError, match=says):
        made(**changes)


def test_a_codec_that_sees_more_than_single_numbers_is_named():
    one = made()
    drawing = dataclasses.replace(one.codec, elementwise=False)
    with pytest.raises(UserError, match="codec 'pixel' cannot encode packed"):
        check_packing(one.config, drawing, one.model)


def test_scaling_laws_are_not_of_packed_rows():
    with pytest.raises(UserError, match=r"got packing\.tokens"):
        one_shape(made().bucket(0))


@pytest.mark.slow
def test_a_packed_run_goes_on_to_the_bit_and_is_drawn_from(tmp_path):
    def run(workdir, steps, *more):
        options = ["--config=configs/mixed_packed.py", f"--workdir={tmp_path / workdir}"]
        options += ["--config.model.depth=1", "--config.model.width=32", "--config.model.heads=2"]
        options += ["--config.batch_size=8", "--config.log.every=2", "--config.samples.num=0"]
        options += ["--config.schedule.name=constant", f"--config.steps={steps}"]
        train.main([*options, *more])
        lines = (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()
        return [(row["step"], row["loss"], row["padding"]) for row in map(json.loads, lines)]

    straight = run("straight", 6)
    run("stopped", 4)
    assert run("stopped", 6, "--config.loader.workers=2") == straight
    assert all(0 <= padding < 0.1 for _, _, padding in straight)
    out = tmp_path / "drawn.png"
    options = ["--num=2", "--steps=1", "--solver=euler", "--size=16x24", "--frames=1"]
    sample.main([f"--workdir={tmp_path / 'stopped'}", f"--out={out}", *options])
    assert out.exists()
