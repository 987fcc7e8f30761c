"""Moving scenes: sentences are read back, and what happens is what is said."""

import dataclasses

import numpy as np
import pytest

from dit import config
from dit.data.sources import world
from dit.scenes import digits
from dit.scenes.draw import UNITS
from dit.scenes.grammar import COLOURS
from dit.scenes.moving.film import film
from dit.scenes.moving.grammar import KINDS, LOOKS, Actor, Scene, parse, wordings
from dit.scenes.moving.motion import GRAVITY, KEPT, PAN, RADII, RATES, bounced, events
from dit.scenes.moving.sprites import EMOJI, emoji_sprite, inked, placed
from dit.types import UserError

FPS, SIZE = 8.0, (32, 40)


def scenes(count=300, of_unseen=False, actors=("shape",)):
    rng = np.random.default_rng(0)
    drawn = (KINDS, True, of_unseen, actors, EMOJI)
    return [world.random_scene(rng, *drawn) for _ in range(count)]


@pytest.mark.parametrize("actors", [("shape",), ("digit",), LOOKS])
def test_every_wording_says_its_scene(actors):
    for scene in scenes(actors=actors):
        assert scene.looks in actors
        for said in wordings(scene):
            assert parse(said) == scene
    assert {scene.kind for scene in scenes(actors=actors)} == set(KINDS)


@pytest.mark.parametrize("actors", [("shape",), LOOKS])
def test_pairs_that_are_held_out_never_occur_in_training(actors):
    assert not any(scene.unseen for scene in scenes(actors=actors))
    assert all(scene.unseen for scene in scenes(100, of_unseen=True, actors=actors))


@pytest.mark.parametrize(
    "sentence",
    [
        "a red circle",
        "a red circle moves",
        "a red circle falls quickly",
        "a red circle moves left while the camera pans right",  # it would leave the picture
        "a red circle moves left and a red square moves right",  # of one colour
        "a red circle moves up behind a grey post",
        "a striped red seven moves left",
        "a red seven moves left and a blue square moves right",  # of two kinds
        "a butterfly emoji moves left and a pizza emoji moves right",
        "a red circle moves right and a butterfly emoji moves left",
        "a red butterfly moves left",
    ],
)
def test_what_cannot_be_filmed_is_refused(sentence):
    with pytest.raises(UserError, match="expected one such as"):
        parse(sentence)


def test_everything_stays_in_the_picture():
    room = np.array(SIZE) * UNITS / min(SIZE)
    rng = np.random.default_rng(1)
    for scene in scenes():
        for path in events(scene, rng, 17, FPS, SIZE).paths:
            assert (path.middle > path.radius * 0.99).all()
            assert (path.middle < room - path.radius * 0.99).all()


def test_bouncing_reflects():
    place = bounced(np.array([0.0, 3.0, 6.0, 9.0, -2.0]), 1.0, 5.0)
    np.testing.assert_allclose(place, [2.0, 3.0, 4.0, 1.0, 4.0])


def test_what_falls_is_accelerated_by_gravity_and_loses_speed_at_the_floor():
    scene, fps = Scene((Actor("red", "circle", action="falls"),)), 200.0
    y = events(scene, np.random.default_rng(0), 500, fps, (32, 32)).paths[0].middle[:, 0]
    hits = np.flatnonzero((np.diff(y)[:-1] > 0.01) & (np.diff(y)[1:] < 0))
    first = y[: hits[0]]
    np.testing.assert_allclose(np.diff(first, 2) * fps**2, GRAVITY, rtol=1e-6)
    before = np.diff(y)[hits[0] - 1] * fps
    after = -np.diff(y)[hits[0] + 2] * fps
    assert after / before == pytest.approx(KEPT, abs=0.03)


@pytest.mark.parametrize("speed", list(RATES))
def test_speeds_and_pans_do_not_depend_on_the_frame_rate(speed):
    moves = Actor("red", "circle", None, "moves", "up", speed)
    for fps in (8.0, 24.0):
        happens = events(Scene((moves,), "left"), np.random.default_rng(0), 4, fps, (32, 32))
        step = np.diff(happens.paths[0].middle, axis=0)[0] * fps
        low, high = RATES[speed]
        assert low <= -step[0] <= high
        assert step[1] == pytest.approx(PAN)  # seen by a camera that goes left
        np.testing.assert_allclose(np.diff(happens.pan) * fps, -PAN)


def test_a_film_shows_what_happens():
    for i, scene in enumerate(scenes(40)):
        made = film(scene, np.random.default_rng(i), 9, (64, 64), FPS)
        assert made.clip.shape == (9, 64, 64, 3)
        for mask, path in zip(made.masks, made.events.paths, strict=True):
            hidden = scene.kind in ("hide", "meet")
            for k in range(0, 9, 4):
                if not hidden and path.actor.shape in ("circle", "square", "cross", "ring"):
                    middle = np.argwhere(mask[k]).mean(0) + 0.5
                    np.testing.assert_allclose(middle, 2 * path.middle[k], atol=0.6)
    again = film(scene, np.random.default_rng(i), 9, (64, 64), FPS)
    np.testing.assert_array_equal(made.clip, again.clip)


def test_the_truth_of_a_clip_is_of_that_clip():
    split = world.build(frames=3, size=16, held_out=10).held_out
    for i in range(4):
        np.testing.assert_array_equal(split.truth(i).clip, split[i]["x"])
        assert parse(split[i]["caption"]).unseen == (i % 2 == 1)
    with pytest.raises(UserError, match="expected sides of 16 pixels"):
        world.build(size=8)
    assert dataclasses.replace(split, fps=4.0).truth(0).events.pan.shape == (3,)


def test_actors_are_as_large_as_asked():
    """And data made before that could be said are the same data."""
    usual, large = world.build(), world.build(radii=(6.0, 7.0))
    assert usual.fingerprint == world.build(radii=RADII).fingerprint == "world-591ab5dbdea6"
    assert large.fingerprint != usual.fingerprint
    paths = [path for i in range(20) for path in large.train.truth(i).events.paths]
    assert all(6 <= path.radius <= 7 for path in paths)
    for bad in ((7.0, 6.0), (5.0, 11.0)):
        with pytest.raises(UserError, match="got radii="):
            world.build(radii=bad)


def test_a_sprite_is_where_it_should_be_and_as_large():
    """In colours that are those of its ink, at places between pixels too."""
    ink = np.ones((8, 8))
    middle = np.array([[10.0, 12.0], [10.5, 12.25], [0.0, 31.0]])
    drawn = placed(inked(ink, "red"), 4.0, middle, (24, 32))
    rows, columns = np.arange(24) + 0.5, np.arange(32) + 0.5
    for at, found in zip(middle[:2], drawn, strict=False):
        amount = found[..., 3]
        assert amount.sum() == pytest.approx((2 * 1.05 * 4.0) ** 2, rel=0.03)
        place = [amount.sum(1) @ rows, amount.sum(0) @ columns] / amount.sum()
        np.testing.assert_allclose(place, at, atol=0.05)
        np.testing.assert_allclose(found[..., :3], amount[..., None] * COLOURS["red"])
    assert 0.2 < drawn[2, ..., 3].sum() / drawn[0, ..., 3].sum() < 0.35  # in the corner


def test_emoji_are_cut_out_of_the_ground_that_they_are_drawn_on():
    """With red where the heart is, and nothing beside it."""
    heart = emoji_sprite("red heart", 40)
    assert heart[..., 3].max() == pytest.approx(1, abs=0.01)
    assert heart[0, 0, 3] == heart[-1, 0, 3] == 0
    inside = heart[heart[..., 3] > 0.99]
    assert (inside[:, 0] > inside[:, 1:3].max(-1) + 0.3).mean() > 0.6
    assert (heart[..., :3] <= heart[..., 3:] + 0.02).all()
    rows, columns = ((heart[..., 3] > 0.5).any(axis) for axis in (1, 0))
    assert rows.mean() > 0.95 or columns.mean() > 0.95  # without margins
    with pytest.raises(UserError, match="got the emoji 'red hart'"):
        emoji_sprite("red hart", 40)


def test_digits_that_are_held_out_are_never_trained_on():
    for word in digits.WORDS:
        train, aside = (digits.scans(word, part) for part in (False, True))
        assert len(train) > 4 * len(aside) > 80
        assert not {scan.tobytes() for scan in train} & {scan.tobytes() for scan in aside}


def test_actors_of_every_kind_are_filmed_as_said():
    source = world.build(actors=LOOKS, frames=3, held_out=40)
    assert source.fingerprint != world.build(frames=3, held_out=40).fingerprint
    seen = {parse(source.held_out[i]["caption"]).looks for i in range(12)}
    assert seen == set(LOOKS)
    of_all = {"actors": ("emoji",), "kinds": ("drift",)}
    for bad, message in (
        ({"actors": ("emoji",)}, "cannot be told apart where they meet"),
        ({**of_all, "emoji": ("red hart",)}, "got the emoji 'red hart'"),
        ({**of_all, "kinds": ("fall",), "emoji": ("key",)}, "name more of them"),
        ({"actors": ("cat",)}, "shape"),
    ):
        with pytest.raises(UserError, match=message):
            config.resolve("data.sources", "world", **bad)
