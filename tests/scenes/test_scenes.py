"""Scenes: every sentence is understood as it was meant, and what is drawn is what is said."""

import itertools

import numpy as np
import pytest

from dit.data.sources import shapes_text
from dit.scenes import letters
from dit.scenes.draw import COLOURS, RADII, UNITS, _layout, draw
from dit.scenes.grammar import (
    KINDS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SIZES,
    WORDS,
    Scene,
    Thing,
    parse,
    unseen,
    wordings,
)
from dit.scenes.outline import distance
from dit.types import UserError

THINGS = [Thing(*each) for each in itertools.product(COLOURS, SHAPES, (None, *SIZES))]


def scenes():
    """All that can be said, but for the second of two things, of which each first one has a few."""
    for thing in THINGS:
        yield Scene((thing,))
    for colour, shape, n in itertools.product(COLOURS, SHAPES, NUMBERS.values()):
        yield Scene((Thing(colour, shape),) * n)
    for i, (thing, relation) in enumerate(itertools.product(THINGS, RELATIONS)):
        for other in THINGS[i % 7 :: 29]:
            if other.pair != thing.pair:
                yield Scene((thing, other), relation)
    for colour, word in itertools.product(COLOURS, (*WORDS, "QZ", "ABCDE")):
        yield Scene((Thing(colour, word),))


def test_every_wording_of_every_scene_is_understood():
    said = {}
    for scene in scenes():
        for wording in wordings(scene):
            assert parse(wording) == scene
            assert said.setdefault(wording, scene) == scene  # no sentence means two things
    assert len(said) > 3000
    assert {scene.kind for scene in said.values()} == set(KINDS)


@pytest.mark.parametrize(
    ("sentence", "scene"),
    [
        (
            "a small red circle left of a blue square",
            Scene((Thing("red", "circle", "small"), Thing("blue", "square")), "left of"),
        ),
        (
            "a blue square right of a small red circle",
            Scene((Thing("red", "circle", "small"), Thing("blue", "square")), "left of"),
        ),
        (
            "an orange star below a pink ring",
            Scene((Thing("pink", "ring"), Thing("orange", "star")), "above"),
        ),
        ("three green triangles", Scene((Thing("green", "triangle"),) * 3)),
        ("two white crosses", Scene((Thing("white", "cross"),) * 2)),
        ("  the word  CAT in white ", Scene((Thing("white", "CAT"),))),
        ("CAT in white letters", Scene((Thing("white", "CAT"),))),
    ],
)
def test_sentences_mean_what_they_say(sentence, scene):
    assert parse(sentence) == scene


@pytest.mark.parametrize(
    "sentence",
    [
        *("", "a red dog", "red circle", "six red circles", "a huge red ring", "two red ring"),
        *(
            "a red circle near a ring",
            "the word in red",
            "the word cat in red",
            "the word A in red",
        ),
    ],
)
def test_other_sentences_are_refused(sentence):
    with pytest.raises(UserError, match="expected one such as"):
        parse(sentence)


def test_each_colour_lacks_one_shape_and_every_colour_and_shape_is_trained_on():
    table = np.array([[unseen(c, s) for s in SHAPES] for c in COLOURS])
    assert (table.sum(1) == 1).all()
    assert table.sum(0).min() >= 1
    assert table.sum(0).max() <= 2
    words = np.array([[unseen(c, w) for w in WORDS] for c in COLOURS])
    assert 1 / 8 < words.mean() < 1 / 5
    assert words.sum(0).max() <= 2
    for sentence in ("a small red circle left of a blue square", "three green triangles"):
        assert not parse(sentence).unseen
    assert not parse("the word CAT in white").unseen
    assert unseen("white", "QUIZ")


@pytest.mark.parametrize("kind", KINDS)
def test_training_has_no_unseen_pair_and_held_out_pictures_take_turns(kind):
    source = shapes_text.build(kinds=(kind,), held_out=60)
    for i in range(150):
        scene = parse(source.train[i]["caption"])
        assert scene.kind == kind
        assert not scene.unseen
    for i in range(60):
        things = parse(source.held_out[i]["caption"]).things
        assert {unseen(*thing.pair) for thing in things} == {i % 2 == 1}


def test_what_a_source_makes_depends_on_its_options():
    plain = shapes_text.build()
    others = [{"seed": 1}, {"size": 33}, {"size": (32, 33)}, {"kinds": ("one",)}, {"held_out": 9}]
    assert len({plain.fingerprint, *(shapes_text.build(**o).fingerprint for o in others)}) == 6
    assert len({plain.train[i]["x"].tobytes() for i in range(50)}) == 50
    assert (shapes_text.build(seed=1).train[0]["x"] != plain.train[0]["x"]).any()
    for wrong in ({"size": 31}, {"size": (64, 20)}, {"kinds": ()}):
        with pytest.raises(UserError, match="32 pixels or more"):
            shapes_text.build(**wrong)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_is_a_distance_and_no_larger_than_its_radius(shape):
    """Near the edge it changes by one from one pixel to the next, whatever the direction."""
    at, radius = np.arange(-20, 20.1, 0.25), 10.0
    d = distance(shape, at[:, None], at[None, :], radius)
    slope = np.hypot(*np.gradient(d, 0.25))[1:-1, 1:-1]
    near = np.abs(d[1:-1, 1:-1]) < 1
    assert abs(np.median(slope[near]) - 1) < 0.03
    inside = np.argwhere(d < 0)
    assert np.abs(at[inside]).max() <= 1.06 * radius
    mirrored = distance(shape, at[:, None], -at[None, :], radius)
    np.testing.assert_allclose(d, mirrored, atol=1e-12)


def test_a_star_has_five_points():
    angle = np.arange(0, 2 * np.pi, 0.01)
    dy, dx = 0.8 - 10 * 0.75 * np.cos(angle), 10 * 0.75 * np.sin(angle)
    inside = np.array([distance("star", np.full((1, 1), y), np.full((1, 1), x), 10.0) < 0
                       for y, x in zip(dy, dx, strict=True)]).ravel()  # fmt: skip
    assert (np.diff(np.r_[inside, inside[0]].astype(int)) == 1).sum() == 5


def test_letters_differ_and_a_word_is_its_letters():
    glyphs = np.stack(list(letters.GLYPHS.values()))
    apart = np.abs(glyphs[:, None] - glyphs[None]).sum((2, 3)) + 99 * np.eye(26)
    assert apart.min() >= 3
    t = np.zeros((7, 5))
    t[0] = t[:, 2] = 1
    np.testing.assert_array_equal(letters.GLYPHS["T"], t)
    assert letters.GLYPHS["L"].sum() == 7 + 4
    ink = letters.written("CAT")
    assert ink.shape == (7, 17)
    np.testing.assert_array_equal(ink[:, 6:11], letters.GLYPHS["A"])
    assert not ink[:, [5, 11]].any()


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (128, 64)])
def test_a_picture_has_the_area_the_colours_and_the_order_that_were_said(size):
    unit = min(size) / 32
    for seed in range(8):
        scene = Scene(
            (Thing("white", "circle", "large"), Thing("blue", "circle", "small")), "above"
        )
        x = draw(scene, np.random.default_rng(seed), size) / 255
        ground = np.median(x, (0, 1))
        white, blue = (np.abs(x - COLOURS[c]).max(-1) < 0.05 for c in ("white", "blue"))
        for mask, said in ((white, "large"), (blue, "small")):
            low, high = (np.pi * (unit * r) ** 2 for r in RADII[said])
            ink = np.abs(x - ground).sum(-1)[mask].mean()
            around = np.abs(x - ground).sum(-1) * (white if said == "large" else blue)
            assert 0.6 * low < around.sum() / ink < 1.02 * high
        assert np.argwhere(white).mean(0)[0] < np.argwhere(blue).mean(0)[0]
        assert (ground < 0.2).all()


@pytest.mark.first
@pytest.mark.parametrize("size", [(32, 32), (32, 56), (45, 45)])
def test_two_of_the_largest_things_always_find_room(size):
    """They leave each other no freedom: one number in ten thousand rounded to less than none."""
    scene = parse("a large red circle left of a large blue square")
    room = tuple(side / (min(size) / UNITS) for side in size)
    for seed in range(20_000):
        radii, middles = _layout(scene, np.random.default_rng(seed), room)
        assert ((middles > radii[:, None]) & (middles < np.array(room) - radii[:, None])).all()
