"""Data of several shapes through the commands: sampled, compared and accounted for by shape."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import saved_run

from dit import evaluate, experiment, media, rng, sample, train
from dit.evaluate import held_out_loss
from dit.parallel import topology
from dit.preflight import buckets, programs
from dit.preflight.report import Report
from dit.scaling.ablate import cost_of
from dit.scaling.costs import one_shape
from dit.scaling.flops import training_flops
from dit.training.feed import bucket_shapes
from dit.types import UserError

SHAPES = ((1, 12, 12), (1, 12, 16), (2, 12, 12))
DATA = {
    "name": "mixture",
    "parts": tuple(
        {
            "name": "moving_digits",
            "frames": f,
            "size": (h, w),
            "speed": (0.0, 1.0),
            "clips": n,
            "held_out_clips": 6,
        }
        for (f, h, w), n in zip(SHAPES, (8, 4, 4), strict=True)
    ),
}
MODEL = {"name": "dit", "depth": 1, "width": 16, "heads": 2, "patch": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("shapes") / "run"
    return saved_run.save(workdir, DATA, model=MODEL), workdir


def draw(workdir, out, *more):
    sample.main([f"--workdir={workdir}", f"--out={out}", "--num=2", "--ema=params", *more])


def test_a_checkpoint_knows_all_shapes_and_is_built_without_the_data(run):
    made, workdir = run
    again = sample.load_experiment(str(workdir))
    assert again.shapes == made.shapes == tuple((*shape, 1) for shape in SHAPES)
    assert "source" not in vars(again)
    assert made.shares == [0.5, 0.25, 0.25]
    flops = [training_flops(made.model, shape) for shape in made.shapes]
    assert made.mean(lambda s: training_flops(made.model, s)) == pytest.approx(
        np.dot(made.shares, flops)
    )


def test_one_shape_is_kept_in_a_checkpoint_as_before():
    one = experiment.build({**saved_run.TINY, "data": {"name": "digits"}})
    assert one.example == {"shape": [1, 8, 8, 1], "classes": 10}
    assert one.mean(lambda s: float(sum(s))) == 18.0


@pytest.mark.first
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ((), (12, 12)),  # of one frame: pictures
        (("--size=12x16",), (12, 16)),
        (("--frames=2",), (2, 12, 12)),
        (("--size=8x20", "--frames=3"), (3, 8, 20)),  # none that it was trained on
    ],
    ids=str,
)
def test_samples_have_the_size_that_is_asked_for(run, tmp_path, options, shape):
    draw(run[1], tmp_path / "a.npz", *options)
    assert np.load(tmp_path / "a.npz")["samples"].shape == (2, *shape, 1)


def test_a_picture_remembers_its_size(run, tmp_path):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    draw(run[1], one, "--size=12x16")
    assert media.read_recipe(one)["size"] == [1, 12, 16]
    sample.main([f"--workdir={run[1]}", f"--out={other}", f"--like={one}"])
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("option", "says"),
    [("--size=10x12", "cannot be cut into patches"), ("--size=3xx", "HEIGHTxWIDTH")],
)
def test_sizes_that_cannot_be_are_refused(run, tmp_path, option, says):
    with pytest.raises(UserError, match=says):
        draw(run[1], tmp_path / "a.npz", option)


def test_samples_are_compared_with_data_of_one_shape_that_has_to_be_named(run):
    with pytest.raises(UserError, match=r"give one of those .* --size=12x16 --frames=1"):
        evaluate.main([f"--workdir={run[1]}", "--num=4"])
    args = evaluate.arguments().parse_args([f"--workdir={run[1]}", "--frames=2"])
    one = evaluate.chosen_bucket(run[0], args)
    assert one.shape == one.source.shape == (2, 12, 12, 1)
    assert len(one.source.train) == 4


def test_the_held_out_loss_is_the_mean_over_examples_of_all_shapes(run):
    made, _ = run
    params = jax.jit(made.init)(rng.root(0))
    losses = [held_out_loss(made.bucket(i), params)["held_out_loss"] for i in range(3)]
    # Of other noise, as an example's number is another: equal up to chance.
    found = held_out_loss(made, params)
    assert found["held_out_loss"] == pytest.approx(
        np.mean(losses), abs=5 * found["held_out_loss_error"]
    )


def stand_in(made, where):
    """A report that says of what it is by its sizes, without compiling anything."""
    size = bucket_shapes(made.batches())[0]["x"].size
    numbers = dict.fromkeys(
        ("devices", "chips", "images", "steps", "model_flops", "program_flops"), 1
    )
    given = {"mesh": {}, "advice": [], "expected_sizes": frozenset(), "memory": {}, "within": {}}
    texts = {"what": "train step", "topology": "cpu", "remat": "none"}
    return Report(**numbers, **given, **texts, tokens=size, peak_flops=None, hbm=None, fits=True)


@pytest.mark.parametrize(
    "step",
    [stand_in, pytest.param(programs.train_step, marks=pytest.mark.slow)],
    ids=["quick", "real"],
)
def test_the_step_of_each_shape_is_reported_the_largest_first(run, monkeypatch, step):
    monkeypatch.setattr(buckets.programs, "train_step", step)
    reports = buckets.train_steps(run[0], topology.find(""))
    assert [r.what.partition(",")[0] for r in reports] == [
        "train step of 2x12x12",
        "train step of 1x12x16",
        "train step of 1x12x12",
    ]
    assert [r.share for r in reports] == [0.25, 0.25, 0.5]
    if step is stand_in:
        assert [r.tokens / 8 for r in reports] == [288, 192, 144]


def test_scaling_laws_are_of_one_shape(run):
    assert one_shape(run[0].bucket(1)) == (1, 12, 16, 1)
    with pytest.raises(UserError, match=r"got examples of 3 shapes"):
        cost_of(run[0])


def test_hours_are_those_of_the_mean_step(run):
    rows = [{"share": n, "step_seconds": 1.0 + i} for i, n in enumerate((0.25, 0.25, 0.5))]
    assert buckets.mean(rows)["step_seconds"] == 0.25 * 1 + 0.25 * 2 + 0.5 * 3
    assert buckets.mean([{**rows[0], "step_seconds": None}])["step_seconds"] is None
    assert buckets.largest(run[0].config).shape == (2, 12, 12, 1)


def test_a_shape_without_training_examples_is_neither_used_nor_the_largest(run):
    one = experiment.build(run[0].config)
    train = one.source.train
    empty = dataclasses.replace(train, bucket_sizes=(0, *train.bucket_sizes[1:2], 0))
    one.__dict__["source"] = dataclasses.replace(one.source, train=empty)
    assert (one.used, one.largest) == ([1], 1)


@pytest.mark.slow
def test_a_run_draws_samples_of_each_shape(tmp_path):
    train.main(
        [
            "--config=configs/mixed.py",
            f"--workdir={tmp_path}",
            *("--config.steps=4", "--config.batch_size=8", "--config.log.every=2"),
            *("--config.model.depth=1", "--config.model.width=32", "--config.model.heads=2"),
            *("--config.samples.every=0", "--config.samples.steps=1", "--config.samples.num=2"),
            *("--config.samples.solver=euler", "--config.schedule.warmup=1"),
        ]
    )
    drawn = {path.name for path in (tmp_path / "samples").glob("*.png")}
    shapes = ("1x16x16", "1x16x24", "1x24x16", "4x16x16", "8x16x16")
    assert drawn == {f"step_0000004_{shape}.png" for shape in shapes}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
