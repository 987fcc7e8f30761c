"""How clips go on from what they are given: closed forms, and what each figure notices."""

import json

import numpy as np
import pytest
from saved_run import TINY, save

from dit import evaluate
from dit.draw import Sampler
from dit.evaluation import clips as evaluation_clips
from dit.evaluation import given
from dit.types import UserError

N, F, SIDE = 6, 5, 8


@pytest.fixture
def real():
    """A square that moves by a pixel a frame, each clip in a grey of its own."""
    clips = np.zeros((N, F, SIDE, SIDE, 3), np.uint8)
    for i in range(N):
        for k in range(F):
            clips[i, k, 2:5, k : k + 3] = 80 + 30 * i
    return clips


def first_frame(clips):
    kept = np.zeros(clips.shape, bool)
    kept[:, 0] = True
    return kept


def test_psnr_is_that_of_a_known_error(real):
    off = (real // 2 + 10).astype(np.uint8)
    error = np.square(off.astype(float) - real)[:, 1:].mean((1, 2, 3, 4))
    expected = np.mean(10 * np.log10(255**2 / error))
    assert given.psnr(off, real, ~first_frame(real)) == pytest.approx(expected, rel=1e-6)
    assert given.psnr(real, real, first_frame(real)) == given.MOST
    assert np.isnan(given.psnr(real, real, np.zeros_like(first_frame(real))))


def test_what_is_beside_the_given_is_in_the_same_place():
    kept = np.zeros((1, 4, 1, 2, 1), bool)
    kept[0, 0, 0, 0] = kept[0, 3, 0, 1] = True
    found = given.beside(kept)[0, :, 0, :, 0]
    np.testing.assert_array_equal(found, [[0, 0], [1, 0], [0, 1], [0, 0]])


def test_a_clip_that_goes_on_is_told_from_a_frozen_one_and_from_another(real):
    kept, other = first_frame(real), np.roll(real, 1, 0)
    still = real[:, :1].repeat(F, 1)
    good = given.score(real, other, real, kept)
    assert set(good) == set(given.FIGURES)
    assert good["first_frame_psnr"] == good["drawn_psnr"] == given.MOST
    for name in given.PSNRS:
        assert good[f"{name}_control"] < 40
    assert good["change_ratio"] == good["change_ratio_control"] == pytest.approx(1)
    frozen = given.score(still, other, real, kept)
    assert frozen["change_ratio"] == 0
    assert frozen["given_psnr"] == given.MOST
    assert frozen["next_psnr"] > frozen["drawn_psnr"]  # it has moved away by then


@pytest.mark.slow
def test_the_command_gives_frames_of_the_clips_whose_captions_it_asks_for(tmp_path, monkeypatch):
    """Beside those of another clip; what is given comes out as it went in."""
    monkeypatch.setattr(evaluation_clips, "TRAIN", 8)
    monkeypatch.setattr(evaluation_clips, "HELD_OUT", 8)
    small = {"size": 16, "frames": 4, "kinds": ("drift",), "radii": (6.0, 7.0), "held_out": 8}
    text = {"name": "bytes", "length": 64, "width": 8, "depth": 1, "heads": 1, "gives": "pooled"}
    changes = {"model": {**TINY["model"], "patch": (1, 8, 8)}, "text": text}
    objective = {"name": "denoise", "tasks": ("text_to_video", "extend")}
    made = save(tmp_path / "run", {"name": "world", **small}, objective=objective, **changes)
    real = np.stack([made.source.held_out[i]["x"] for i in range(6)])
    starts, draw = [], Sampler.__call__

    def drawn(self, params, **inputs):
        starts.append(inputs["start"])
        found = draw(self, params, **inputs)
        np.testing.assert_array_equal(found.samples[:, :2], inputs["start"][:, :2])
        return found

    monkeypatch.setattr(Sampler, "__call__", drawn)
    arguments = [f"--workdir={tmp_path / 'run'}", "--num=6", "--steps=2"]
    demand = "--demand=given_psnr>=given_psnr_control+20"
    assert evaluate.main([*arguments, "--task=extend:frames=2", demand]) == 0
    np.testing.assert_array_equal(starts[0], real)
    np.testing.assert_array_equal(starts[1], np.roll(real, 1, 0))
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {*given.FIGURES, "speed_ratio", "direction", "colour", "shape"} <= {*report["figures"]}
    assert report["figures"]["first_frame_psnr"] == given.MOST
    assert report["recipe"]["task"] == "extend:frames=2"
    for task, message in (("text_to_video", "one that is given frames"), ("inpaint", "a part of")):
        with pytest.raises(UserError, match=message):
            evaluate.main([*arguments, f"--task={task}"])
