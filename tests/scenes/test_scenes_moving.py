"""Moving scenes: sentences are read back, and what happens is what is said."""

import dataclasses

import numpy as np
import pytest

from dit.data.sources import world
from dit.scenes.draw import UNITS
from dit.scenes.moving.film import film
from dit.scenes.moving.grammar import KINDS, Actor, Scene, parse, wordings
from dit.scenes.moving.motion import GRAVITY, KEPT, PAN, RADII, RATES, bounced, events
from dit.types import UserError

FPS, SIZE = 8.0, (32, 40)


def scenes(count=300, of_unseen=False):
    rng = np.random.default_rng(0)
    return [world.random_scene(rng, KINDS, True, of_unseen) for _ in range(count)]


def test_every_wording_says_its_scene():
    for scene in scenes():
        for said in wordings(scene):
            assert parse(said) == scene
    assert {scene.kind for scene in scenes()} == set(KINDS)


def test_pairs_that_are_held_out_never_occur_in_training():
    assert not any(scene.unseen for scene in scenes())
    assert all(scene.unseen for scene in scenes(100, of_unseen=True))


@pytest.mark.parametrize(
    "sentence",
    [
        "a red circle",
        "a red circle moves",
        "a red circle falls quickly",
        "a red circle moves left while the camera pans right",  # it would leave the picture
        "a red circle moves left and a red square moves right",  # of one colour
        "a red circle moves up behind a grey post",
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
