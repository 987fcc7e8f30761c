"""Drift of long clips: closed forms, what real clips score, and what each figure notices."""

import json

import numpy as np
import pytest
from saved_run import TINY, save

from dit import evaluate
from dit.data.sources import world as source
from dit.evaluation import damage, drift
from dit.evaluation.full import evaluation_of
from dit.scenes.moving.grammar import parse
from dit.types import UserError

NUM, FRAMES = 10, 36


@pytest.fixture(scope="module")
def filmed():
    """Clips four windows long, of scenes whose actors stay."""
    options = {"size": 24, "radii": (5.0, 6.5), "textures": False, "kinds": drift.STAYING}
    return source.build(frames=FRAMES, held_out=NUM, **options)


@pytest.fixture(scope="module")
def found(filmed):
    examples = [filmed.held_out[i] for i in range(NUM)]
    return damage.lasting([parse(x["caption"]) for x in examples], [x["x"] for x in examples])


def apart(one, other):
    return one[1] > other[2] or one[2] < other[1]


def test_real_clips_neither_drift_nor_jump(found):
    real = found["real"]
    assert {name for name in real if name.startswith("present")} == {
        *("present_1", "present_2", "present_3", "present_4")
    }
    for k in (1, 2, 3, 4):
        assert real[f"present_{k}"][0] == 1
    for k in (2, 3, 4):
        assert real[f"colour_drift_{k}"][0] < 0.5
    for name, off in (("block_jump", 0.1), ("window_jump", 0.3)):
        assert real[name][0] == pytest.approx(1, abs=off)
        assert real[name][1] < 1 < real[name][2]


@pytest.mark.parametrize(
    ("name", "more", "less", "same"),
    [
        (
            "vanishing",
            {"colour_drift_3"},
            {"present_3", "change_3"},
            {"present_1", "present_2", "colour_drift_2", "change_2"},
        ),
        (
            "tinting",
            {"colour_drift_2", "colour_drift_3", "colour_drift_4"},
            set(),
            {"present_4", "change_3", "block_jump", "window_jump"},
        ),
        ("in blocks", {"block_jump", "window_jump", "colour_drift_2"}, set(), {"present_3"}),
        ("freezing", set(), {"change_3", "change_4"}, {"present_4", "colour_drift_3", "change_2"}),
    ],
)
def test_damage_is_noticed_where_it_is(found, name, more, less, same):
    real, spoilt = found["real"], found[name]
    assert all(spoilt[figure][1] > real[figure][2] for figure in more)
    assert all(spoilt[figure][2] < real[figure][1] for figure in less)
    assert not any(apart(spoilt[figure], real[figure]) for figure in same)
    if name == "tinting":
        assert spoilt["colour_drift_3"][1] > spoilt["colour_drift_2"][2]
        assert spoilt["colour_drift_4"][1] > spoilt["colour_drift_3"][2]


def test_figures_are_those_of_clips_whose_colour_and_steps_are_known():
    """Every frame of one colour, 10 k in window k, and 3 more in every second block of two."""
    frame = np.arange(12)
    grey = 10 * (frame // 4) + 3 * (frame // 2 % 2)
    clips = np.tile(grey[:, None, None, None], (2, 1, 4, 5, 1)).astype(np.uint8)
    clips[1, :, :, :, 0] += frame.astype(np.uint8)[:, None, None]
    found = drift.terms(clips, 4, range(2, 12, 2), [None, None])
    values = {name: drift.ratio(*each)[0] for name, each in found.items()}
    assert set(values) == {
        *("colour_drift_2", "change_2", "colour_drift_3", "change_3", "block_jump", "window_jump")
    }
    assert values["colour_drift_2"] == pytest.approx((10 + 14) / 2)
    assert values["colour_drift_3"] == pytest.approx((20 + 28) / 2)
    assert values["change_2"] == values["change_3"] == 1
    assert values["block_jump"] == pytest.approx((23 / 5 + 28 / 5) / (0 + 1))
    assert values["window_jump"] == pytest.approx((7 + 8) / (0 + 1))


def test_the_interval_is_that_of_a_mean_and_of_a_ratio():
    draw = np.random.default_rng(1)
    above, below = draw.normal(3, 1, 400), draw.normal(2, 0.1, 400)
    value, low, high = drift.ratio(above, np.ones(400))
    error = above.std() / 20
    assert value == pytest.approx(above.mean())
    np.testing.assert_allclose([low, high], value + np.array([-1.96, 1.96]) * error, atol=0.02)
    value, low, high = drift.ratio(above, below)
    error = (above - value * below).std() / 20 / below.mean()  # the delta method
    np.testing.assert_allclose([low, high], value + np.array([-1.96, 1.96]) * error, atol=0.02)
    assert drift.ratio(np.ones(5), np.ones(5)) == (1, 1, 1)
    assert np.isnan(drift.ratio(np.ones(5), np.zeros(5))).all()


def test_an_evaluation_of_a_rollout_has_the_figures_that_it_announced(filmed):
    captions = tuple(filmed.held_out[i]["caption"] for i in range(6))
    clips = np.stack([filmed.held_out[i]["x"] for i in range(6)])
    evaluation = evaluation_of(filmed, 6, captions, rolled_out=(9, [3, 6, 9]))
    figures = evaluation(clips, None)
    assert set(figures) == set(evaluation.figures)
    assert {"present_3_low", "colour_drift_3_high", "window_jump_real", "direction"} <= set(figures)
    for name in ("colour_drift_3", "present_2", "block_jump"):
        assert figures[name] == figures[f"{name}_real"]
    alone = drift.part(filmed, ("a cat",) * 6, filmed.held_out, FRAMES, range(1, FRAMES))
    why = {name: reason for name, reason in alone.lacks.items() if reason}
    assert set(why) == {"present_1", "colour_drift_2", "change_2", "block_jump", "window_jump"}
    assert "blocks of 1 frame" in why["block_jump"]
    assert "no longer than the window" in why["window_jump"]


@pytest.mark.slow
def test_the_command_judges_clips_longer_than_those_of_training(tmp_path, capsys):
    small = {"size": 16, "frames": 4, "kinds": ("drift", "fall"), "radii": (6.0, 7.0)}
    text = {"name": "bytes", "length": 64, "width": 8, "depth": 1, "heads": 1, "gives": "pooled"}
    model = {**TINY["model"], "patch": (1, 8, 8), "block": "modern", "positions": "rope"}
    model |= {"frame_causal": True}
    data = {"name": "world", "held_out": 8, **small}
    forced = {"name": "denoise", "level": "frame"}
    save(tmp_path / "run", data, objective=forced, model=model, text=text)
    spec = "autoregressive:block=2,cache=true,sinks=1"
    base = [f"--workdir={tmp_path / 'run'}", "--num=6", "--steps=2", "--frames=12"]
    arguments = [*base, f"--rollout={spec}"]
    demands = ["--demand=colour_drift_3_high>=colour_drift_3", "--demand=window_jump>1000"]
    assert evaluate.main([*arguments, *demands]) == evaluate.UNMET
    assert "window_jump>1000" in (said := capsys.readouterr()).err
    assert "colour_drift_3_high" not in said.err
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["recipe"]["shape"] == [12, 16, 16, 3]
    assert report["recipe"]["rollout"] == spec
    assert {"present_3_real", "block_jump_low", "speed_ratio"} <= {*report["figures"]}
    with pytest.raises(UserError, match="is no figure"):
        evaluate.main([*arguments, "--demand=present_4>0.5"])
    with pytest.raises(UserError, match="data of one shape"):
        evaluate.main(base)
    with pytest.raises(UserError, match="only data that are filmed"):
        evaluate.main([*arguments, "--size=24"])
