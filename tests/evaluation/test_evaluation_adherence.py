"""Pictures are read back right, noisy ones too, and prompts that were not given are not found."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
from saved_run import TINY

from dit.data.sources import shapes, shapes_text
from dit.evaluation import adherence
from dit.evaluation.adherence import QUESTIONS, chance, interval, score
from dit.evaluation.demands import lines
from dit.evaluation.full import evaluation_of
from dit.evaluation.reading import Found, read
from dit.experiment import build
from dit.quality import Quality
from dit.recipe import Recipe
from dit.scaling.short import Trained
from dit.scenes.draw import draw
from dit.scenes.grammar import KINDS, Thing, parse
from dit.types import UserError

COUNT = 160


def pictures(split, count=COUNT):
    examples = [split[i] for i in range(count)]
    return [e["caption"] for e in examples], [e["x"][0] for e in examples]


def noisy(x, deviation, seed=0):
    """With Gaussian noise of this standard deviation, of a range of one."""
    noise = np.random.default_rng(seed).normal(0, 255 * deviation, x.shape)
    return np.clip(np.rint(x + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def held_out():
    return pictures(shapes_text.build().held_out)


@pytest.mark.parametrize("deviation", [0, 0.1])
def test_pictures_are_read_as_they_were_drawn(held_out, deviation):
    captions, x = held_out
    found = score(captions, [noisy(one, deviation) for one in x])
    for question in QUESTIONS:
        for end in ("", "_seen", "_unseen"):
            assert found[f"{question}{end}"] >= 0.995


@pytest.mark.first
@pytest.mark.parametrize("size", [47, (40, 96), (128, 70)])
def test_pictures_of_any_size_are_read(size):
    captions, x = pictures(shapes_text.build(size=size).held_out, 60)
    assert score(captions, [noisy(one, 0.05) for one in x])["overall"] == 1


def test_reading_gets_worse_little_by_little(held_out):
    captions, x = held_out
    found = [score(captions[:40], [noisy(one, d) for one in x[:40]]) for d in (0.2, 0.6)]
    for question in ("colour", "shape", "size"):
        assert found[0][question] > 0.7 > found[1][question]


def test_soft_edges_are_read_too(held_out):
    captions, x = held_out
    padded = [np.pad(one.astype(float), ((1, 1), (1, 1), (0, 0)), "edge") for one in x]
    soft = [(p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] + 8 * p[1:-1, 1:-1]) / 12
            for p in padded]  # fmt: skip
    found = score(captions[:80], [np.rint(one).astype(np.uint8) for one in soft[:80]])
    assert found["overall"] > 0.98


def test_prompts_of_other_pictures_score_chance(held_out):
    """Of two colours out of eight that differ, one in eight is met, and less where two are asked for."""
    captions, x = held_out
    swapped = score(captions, x[1:] + x[:1])
    by_chance = chance(captions[:100], pictures(shapes_text.build().train, 100)[1], ways=10)
    for question in QUESTIONS:
        low, high = swapped[f"{question}_low"], swapped[f"{question}_high"]
        assert by_chance[question] < 0.25
        assert low - 0.05 < by_chance[question] < high + 0.05
    assert by_chance["overall"] < 0.01
    assert 0.03 < by_chance["colour"] < 1 / 8


def found(*things):
    return [Found(Thing(*words), (float(y), float(x))) for words, (y, x) in things]


RED, BLUE = ("red", "circle", "small"), ("blue", "square", "large")


@pytest.mark.parametrize(
    ("prompt", "seen", "no"),
    [
        ("a small red circle", [(RED, (0, 0))], ""),
        ("a red circle", [(RED, (0, 0))], ""),
        ("a large red circle", [(RED, (0, 0))], "size overall"),
        ("a red ring", [(RED, (0, 0))], "shape pair overall"),
        ("a red circle", [], "colour shape pair overall"),
        ("a red circle", [(RED, (0, 0)), (RED, (9, 9))], "overall"),
        ("two red circles", [(RED, (0, 0)), (RED, (9, 9))], ""),
        ("three red circles", [(RED, (0, 0)), (RED, (9, 9))], "count overall"),
        ("the word CAT in red", [(("red", "CAT"), (0, 0))], ""),
        ("the word CAT in red", [(("red", "BAT"), (0, 0))], "word pair overall"),
        ("the word CAT in red", [(RED, (0, 0))], "word pair overall"),
        ("a red circle left of a blue square", [(RED, (3, 0)), (BLUE, (0, 9))], ""),
        ("a blue square right of a red circle", [(RED, (3, 0)), (BLUE, (0, 9))], ""),
        ("a red circle above a blue square", [(RED, (3, 0)), (BLUE, (0, 9))], "relation overall"),
        ("a blue square left of a red circle", [(RED, (3, 0)), (BLUE, (0, 9))], "relation overall"),
        ("a red circle above a small blue square", [(RED, (0, 0)), (BLUE, (9, 1))], "size overall"),
        ("a red circle above a blue square", [(RED, (0, 0)), (BLUE, (5, 9))], "relation overall"),
        ("a red square above a blue circle", [(RED, (0, 0)), (BLUE, (9, 1))], "pair relation overall"),
        ("a red circle above a blue square", [(RED, (0, 0))], "colour shape pair relation overall"),
    ],
)  # fmt: skip
def test_what_a_picture_answers(prompt, seen, no):
    given = adherence.answers(parse(prompt), found(*seen))
    assert {question for question, yes in given.items() if not yes} == set(no.split())
    assert given.keys() <= set(QUESTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_is_scored(kind):
    captions, x = pictures(shapes_text.build(kinds=(kind,)).held_out, 30)
    names = score(captions, x).keys()
    assert tuple(names) == adherence.asked(captions)
    assert ("word" in names, "shape" in names) == (kind == "word", kind != "word")
    assert ("count" in names, "relation" in names) == (kind == "count", kind == "relation")


def test_the_interval_is_wilsons():
    low, high = interval(8, 10)
    for bound in (
        low,
        high,
    ):  # where the difference to the share is 1.96 standard errors of the bound
        assert abs(0.8 - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / 10))
    assert interval(0, 5)[0] == pytest.approx(0)
    assert interval(5, 5)[1] == pytest.approx(1)


@pytest.mark.parametrize("what", ["black", "white", "grey", "noise", "halves", "stripes"])
def test_what_is_no_scene_is_read_without_a_complaint(what):
    rng = np.random.default_rng(0)
    x = {
        "black": np.zeros((32, 32, 3)),
        "white": np.full((32, 32, 3), 255),
        "grey": np.full((32, 32, 3), 128),
        "noise": rng.integers(0, 256, (32, 32, 3)),
        "halves": np.repeat(np.arange(32)[:, None, None] // 16 * 255, 32, 1) * np.ones(3),
        "stripes": np.repeat(np.arange(32)[None, :, None] % 2 * 255, 32, 0) * np.ones(3),
    }[what].astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        things = read(x)
    assert not things if what in ("black", "white", "grey") else len(things) < 40
    with pytest.raises(UserError, match="32 pixels"):
        read(x[:31])


def test_an_evaluation_of_captioned_data_has_these_figures_with_real_ones_and_chance(monkeypatch):
    monkeypatch.setattr("dit.evaluation.images.LIMIT", 150)
    monkeypatch.setattr(adherence, "REAL", 40)
    source = shapes_text.build(held_out=120)
    captions, x = pictures(source.held_out, 48)
    evaluation = evaluation_of(source, 48, captions)
    figures = evaluation(np.stack(x)[:, None], None)
    assert list(figures) == list(evaluation.figures)
    for question in QUESTIONS:
        assert figures[question] == figures[f"{question}_real"] == 1
        assert figures[f"{question}_chance"] < 0.3
    assert {"nearest_ratio", "colour_unseen_low", "pair_unseen"} < figures.keys()
    assert evaluation_of(source, 48).figures == tuple(
        name for name in evaluation.figures if name.split("_")[0] not in QUESTIONS
    )


def test_captions_of_another_world_are_left_alone(monkeypatch):
    monkeypatch.setattr("dit.evaluation.images.LIMIT", 20)
    words, small = shapes_text.build(), shapes.build()
    assert adherence.parts(words, ["a cat on a mat"], words.held_out) == ()
    assert adherence.parts(small, ["a red circle"], small.held_out) == ()  # 8 pixels
    with pytest.raises(UserError, match="a cat on a mat"):
        score(["a cat on a mat"], [draw(parse("a red ring"), np.random.default_rng(0), (32, 32))])


def test_figures_are_printed_with_their_intervals_beside_them():
    figures = {"pair": 0.75, "pair_low": 0.5, "pair_high": 0.9, "pair_seen_low": 1.0, "nfe": 3.0}
    names = [line.split()[0] for line in lines(figures)]
    assert names == ["pair", "pair_seen_low", "nfe"]
    assert next(lines(figures)).endswith("0.75  (0.5 to 0.9)")


def test_arms_of_an_ablation_are_compared_by_what_their_prompts_ask_for():
    experiment = build(
        {
            **TINY,
            "data": {"name": "shapes_text", "kinds": ("one",), "held_out": 8},
            "text": {"name": "bytes", "width": 8, "depth": 1, "heads": 2},
            "model": {**TINY["model"], "patch": 8, "block": "cross_attention"},
            "codec": {"name": "pixel"},
        }
    )
    params = jax.jit(experiment.init)(jax.random.key(0))
    recipe = Recipe(prompts=experiment.captions_of("held_out", 4), solver="euler", steps=1)
    quality = Quality({"": recipe}, "params")
    figures = quality("arm", experiment, Trained(params, {}, np.zeros(1)))
    assert tuple(figures) == adherence.asked(recipe.prompts)
    drawn = [x[0] for x in quality.drawn["arm", ""].samples]
    assert figures == score(recipe.prompts, drawn)
    other = Quality({"": dataclasses.replace(recipe, prompts=("a cat", "a dog"))}, "params")
    with pytest.raises(UserError, match="got the sentence 'a cat'"):
        other.check("arm", experiment)
