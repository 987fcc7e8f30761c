"""Measures of moving scenes: true of real clips, and each notices the damage that it should."""

import numpy as np
import pytest

from dit.data.captions import tokenized
from dit.data.sources import world as source
from dit.evaluation import clips as evaluation_clips
from dit.evaluation import damage, world
from dit.evaluation.full import evaluation_of
from dit.evaluation.tracking import follow
from dit.scenes.moving.grammar import LOOKS, parse
from dit.scenes.moving.motion import GRAVITY
from dit.types import UserError

NUM = 40


@pytest.fixture(scope="module")
def clips():
    """Held-out clips with their scenes."""
    split = source.build().held_out
    examples = [split[i] for i in range(NUM)]
    return [parse(x["caption"]) for x in examples], [x["x"] for x in examples]


@pytest.fixture(scope="module")
def found(clips):
    return damage.calibration(*clips)


def test_tracks_are_those_of_the_film():
    split = source.build().held_out
    for i in range(12):
        truth, scene = split.truth(i), parse(split[i]["caption"])
        if scene.kind not in ("drift", "fall", "pan"):
            continue
        seen, (path,) = follow(truth.clip), truth.events.paths
        track = seen.track(path.actor.colour)
        if path.actor.shape in (
            "circle",
            "square",
            "cross",
            "ring",
        ):  # whose middle is their centroid
            np.testing.assert_allclose(track.middle, path.middle, atol=0.7)
        assert seen.pan == pytest.approx(np.diff(truth.events.pan).mean(), abs=0.1)


@pytest.mark.slow
def test_real_clips_are_what_their_captions_say(found):
    real = found["real"]
    for question in ("colour", "direction", "camera", "present"):
        assert real[question] >= 0.98, question
    for question in ("shape", "pair", "identity", "permanent"):
        assert real[question] >= 0.9, question
    assert real["gravity"] == pytest.approx(GRAVITY, rel=0.05)
    assert real["flicker"] < 0.1
    assert {"pair_seen", "pair_unseen"} <= real.keys()


@pytest.mark.parametrize(
    ("name", "notice"),
    [
        ("noise", {"flicker"}),
        ("blur", {"shape", "flicker"}),
        ("static", {"direction", "speed", "gravity", "permanent"}),
        ("shuffled", {"direction", "jump", "speed", "permanent"}),
        ("reversed", {"direction", "gravity", "permanent"}),
        ("swapped", {"colour", "pair", "present", "direction", "area_variation"}),
        ("slow", {"direction", "speed", "gravity"}),
        ("tinted", {"colour", "pair"}),
        ("popping", {"present", "flicker", "area_variation"}),
        ("flashing", {"flicker"}),
        ("others", {"pair", "direction", "shape"}),
    ],
)
def test_damage_is_noticed(found, name, notice):
    real, spoilt = found["real"], found[name]
    noticed = {
        measure
        for measure in (*world.QUESTIONS, *world.FIGURES)
        if damage.spoilt(real[measure], spoilt.get(measure), measure in world.QUESTIONS)
    }
    assert notice <= noticed
    untouched = {
        "noise": {"colour", "direction", "camera", "present", "speed"},
        "static": {"colour", "shape", "identity", "present", "flicker"},
        "reversed": {"colour", "shape", "identity", "present", "speed", "flicker"},
        "slow": {"colour", "shape", "identity", "present", "flicker"},
        "flashing": {"colour", "shape", "direction", "present", "speed"},
    }
    assert not noticed & untouched.get(name, set())


@pytest.mark.slow
@pytest.mark.parametrize("looks", ["digit", "emoji"])
def test_digits_and_emoji_are_told_apart_too(looks):
    """Real clips are right; another's clips and still ones are not."""
    kinds = ("drift", "fall", "pan", "hide", *(["meet"] if looks == "digit" else []))
    split = source.build(actors=(looks,), kinds=kinds).held_out
    examples = [split[i] for i in range(24)]
    scenes, clips = [parse(x["caption"]) for x in examples], [x["x"] for x in examples]
    real = world.score(scenes, clips, 8.0)
    asked = {*world.QUESTIONS} - ({"colour"} if looks == "emoji" else set())
    assert asked <= real.keys()
    assert ("colour" in real) == (looks == "digit")
    for question in asked:
        assert real[question] >= 0.9, question
    assert real["gravity"] == pytest.approx(GRAVITY, rel=0.05)
    others = world.score(scenes, [*clips[1:], clips[0]], 8.0)
    assert others["shape"] <= 0.3
    assert others["pair"] <= 0.1
    still = world.score(scenes, [clip[:1].repeat(9, 0) for clip in clips], 8.0)
    assert still["shape"] >= 0.9
    assert still["direction"] <= 0.2


def test_clips_of_all_kinds_are_scored_together():
    """And an emoji that there is not is refused by name."""
    split = source.build(actors=LOOKS, kinds=("drift",)).held_out
    examples = [split[i] for i in range(12)]
    scenes = [parse(x["caption"]) for x in examples]
    assert {scene.looks for scene in scenes} == set(LOOKS)
    assert world.score(scenes, [x["x"] for x in examples], 8.0)["pair"] >= 0.9
    with pytest.raises(UserError, match="got the emoji 'yeti'"):
        world.score([parse("a yeti emoji falls")], [examples[0]["x"]], 8.0)


def test_an_evaluation_of_clips_has_these_figures(monkeypatch):
    monkeypatch.setattr(evaluation_clips, "TRAIN", 20)
    monkeypatch.setattr(evaluation_clips, "HELD_OUT", 20)
    made = source.build(held_out=30)
    captions = tuple(made.held_out[i]["caption"] for i in range(10))
    evaluation = evaluation_of(made, 10, captions)
    figures = evaluation(np.stack([made.held_out[i]["x"] for i in range(10)]), None)
    assert figures["direction"] == figures["direction_real"] == 1
    assert figures["speed_ratio"] == pytest.approx(1)
    still = np.stack([made.held_out[i]["x"][:1].repeat(9, 0) for i in range(10)])
    assert evaluation(still, None)["speed_ratio"] == 0
    assert "direction" not in evaluation_of(made, 10, ("a cat",) * 10).figures


@pytest.mark.slow
def test_the_rate_and_the_width_of_the_data_count(monkeypatch):
    monkeypatch.setattr(evaluation_clips, "TRAIN", 20)
    monkeypatch.setattr(evaluation_clips, "HELD_OUT", 20)
    made = source.build(fps=16.0, frames=33, size=(32, 48), kinds=("fall", "hide"), held_out=24)
    captions = tuple(made.held_out[i]["caption"] for i in range(24))
    seen = tokenized(made, lambda text: (np.zeros(2, np.int32), np.ones(2, bool)))  # as in a run
    figures = evaluation_of(seen, 24, captions)(
        np.stack([made.held_out[i]["x"] for i in range(24)]), None
    )
    assert figures["gravity"] == pytest.approx(GRAVITY, rel=0.05)
    assert figures["permanent"] >= 0.9
    assert figures["direction"] >= 0.95
