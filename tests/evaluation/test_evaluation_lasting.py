"""Clips judged frame by frame, and arms of an ablation by clips longer than those of training."""

import dataclasses

import numpy as np
import pytest

from dit.draw import Recipe
from dit.evaluation import clips, gather
from dit.evaluation.clips import Frames
from dit.experiment import build
from dit.quality import Lasting
from dit.scaling.ablate import Ablation, ablate
from dit.types import UserError

WINDOW, LONG = 4, 10
BASE = {
    "steps": 4,
    "batch_size": 8,
    "data": {"name": "moving_digits", "frames": WINDOW, "size": 16, "side": 12},
    "model": {"name": "dit", "depth": 1, "width": 32, "heads": 2, "patch": (1, 8, 8)},
    "path": {"name": "linear", "time_scale": 1000.0},
    "prediction": {"name": "x0"},
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "constant"},
    "ema": {"half_lives": (5.0,)},
}
BASE["model"] |= {"block": "modern", "positions": "rope"}
ARMS = {
    "full": {"objective": {"name": "denoise", "tasks": ("text_to_video", "extend")}},
    "forced": {"objective": {"name": "teacher_forcing"}, "model.frame_causal": True},
}
ROLLOUTS = {
    "full": {WINDOW: None, LONG: "autoregressive:block=2"},
    "forced": {LONG: "autoregressive:cache=true"},
}
DRAW = Recipe(labels=(0, 1, 2), steps=1, solver="euler", batch=3)


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(clips, "TRAIN", 400)


@pytest.fixture(scope="module")
def source():
    return build({**BASE, "objective": ARMS["full"]["objective"]}).source


def test_frames_are_judged_each_by_itself(source):
    judge = Frames.of(source)
    x, labels = gather(source.held_out, 120)
    right, step = judge(x, labels)
    assert right.shape == (120, WINDOW)
    assert step.shape == (120, WINDOW - 1)
    assert right.mean() > 0.9
    assert step.mean() > 0.2
    other = np.argmax(labels != labels[0])
    mixed = np.concatenate([x[:1, :2], x[other : other + 1, 2:]], 1)
    np.testing.assert_array_equal(judge(mixed, labels[:1])[0][0, :2], right[0, :2])
    assert not judge(mixed, labels[:1])[0][0, 2:].any()
    still = np.repeat(x[:, :1], WINDOW, 1)
    assert judge(still, labels)[1].max() == 0
    with pytest.raises(UserError, match="the data have no labels"):
        Frames.of(dataclasses.replace(source, num_classes=None))


@pytest.mark.slow
def test_arms_are_judged_by_clips_of_each_length(tmp_path):
    lasting = Lasting(DRAW, ROLLOUTS, WINDOW, "ema_5")
    plan = Ablation(base=BASE, arms=ARMS, lrs=(1e-3,), extend=0, seeds=(1, 2), match="flops")
    rows = ablate(tmp_path, build, plan, measure=lasting, say=lambda text: None)
    assert [row["status"] for row in rows] == ["done"] * 4
    assert {row["arm"]: row["steps"] for row in rows} == {"full": 4, "forced": 2}
    full, forced = (next(row["measures"] for row in rows if row["arm"] == arm) for arm in ARMS)
    assert {*full} == {*forced} | {f"right {WINDOW}", f"motion {WINDOW}", f"right {WINDOW}/3"}
    assert {*forced} == {"right 10", "motion 10", "right 10/3", "right 10/7"}
    assert all(0 <= x <= 1 for name, x in full.items() if name.startswith("right"))
    drawn = lasting.drawn["full", LONG].samples
    assert drawn.shape == (3, LONG, 16, 16, 1)
    right, step = lasting.judge(drawn, np.arange(3))
    last = next(row["measures"] for row in rows[::-1] if row["arm"] == "full")
    assert last["right 10"] == pytest.approx(right[:, -WINDOW:].mean())
    real = gather(lasting._samplers["full", LONG].experiment.source.held_out, 200)
    moved = lasting.judge(*real)[1][:, 1 - WINDOW :].mean()
    assert last["motion 10"] == pytest.approx(step[:, 1 - WINDOW :].mean() / moved)


def test_a_rollout_that_a_model_was_not_trained_for_is_refused():
    experiment = build({**BASE, "objective": {"name": "denoise"}})
    with pytest.raises(UserError, match="never trained with clean frames"):
        Lasting(DRAW, {"full": ROLLOUTS["full"]}, WINDOW).check("full", experiment)
    for recipe, window, arm in ((Recipe(num=2), WINDOW, "full"), (DRAW, 1, "full"), (DRAW, 4, "x")):
        with pytest.raises(UserError, match="expected labels, by which clips are judged"):
            Lasting(recipe, ROLLOUTS, window).check(arm, experiment)
