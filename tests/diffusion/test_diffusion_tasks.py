"""Video tasks: their masks are as they are named, whatever shape and patch, and so is the mix."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, rng
from dit.diffusion import tasks
from dit.types import UserError

KEY = rng.root(5)
SHAPES = {  # frames, rows and columns that differ, of one frame too; with the patch
    ((10, 4, 6), (2, 2, 3)),
    ((2, 8, 2), (1, 2, 2)),
    ((1, 4, 3), (1, 2, 3)),
}


def masks(spec, shape, patch, n=200):
    """Those of ``n`` samples, and the same by token."""
    keys = rng.per_sample(KEY, jnp.arange(n))
    found = np.asarray(tasks.mask(spec, keys, shape, patch))
    assert found.shape == (n, *shape)
    assert found.dtype == bool
    by_token = found[:, :: patch[0], :: patch[1], :: patch[2]]
    again = by_token
    for axis, size in enumerate(patch, 1):
        again = again.repeat(size, axis)
    np.testing.assert_array_equal(found, again)  # constant within each patch
    return found, by_token


def whole_frames(by_token):
    """Which frames are given; none is given in part."""
    np.testing.assert_array_equal(by_token.any((2, 3)), by_token.all((2, 3)))
    return by_token.all((2, 3))


@pytest.mark.parametrize(("shape", "patch"), sorted(SHAPES), ids=str)
def test_masks_are_as_they_are_named(shape, patch):
    frames, rows, columns = tasks.grid_of(shape, patch)
    assert not masks("text_to_video", shape, patch)[0].any()
    exact = {
        "image_to_video": (2, [0]),
        "last_frame": (2, [frames - 1]),
        "in_between": (3, [0, frames - 1]),
        "extend:frames=2": (3, [0, 1]),
        "extend_back:frames=2": (3, [frames - 2, frames - 1]),
    }
    for spec, (least, given) in exact.items():
        if frames < least:
            with pytest.raises(UserError, match="is possible for samples of"):
                masks(spec, shape, patch)
            continue
        expected = np.isin(np.arange(frames), given)
        assert (whole_frames(masks(spec, shape, patch)[1]) == expected).all(), spec
    for spec, sign in (("extend", 1), ("extend_back", -1)):
        if frames < 2:
            continue
        given = whole_frames(masks(spec, shape, patch)[1])[:, ::sign]
        count = given.sum(1)
        np.testing.assert_array_equal(given, np.arange(frames) < count[:, None])
        assert set(count) == set(range(1, frames))  # from one to all but one
    if frames * rows * columns > 1:
        free = ~masks("inpaint", shape, patch)[1]
        sides = [free.any(axes) for axes in ((2, 3), (1, 3), (1, 2))]
        t, y, x = sides
        box = t[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :]
        np.testing.assert_array_equal(free, box)
        for along in sides:
            length = along.sum(1)
            assert set(length) == set(range(1, along.shape[1] + 1))
            starts = np.diff(along.astype(int), axis=1, prepend=0) == 1
            assert (starts.sum(1) == 1).all()  # in one piece
            assert along[length == 1].any(0).all()  # and anywhere
    share = masks("tokens:share=0.25", shape, patch)[1].mean()
    assert share == pytest.approx(0.25, abs=4 * (0.19 / (200 * frames * rows * columns)) ** 0.5)


@pytest.mark.parametrize("name", config.names("diffusion.tasks"))
def test_a_task_says_whether_it_gives_whole_frames_and_where_it_fits(name):
    task = config.resolve("diffusion.tasks", name)
    if task.known is None:
        with pytest.raises(UserError, match="give --mask"):
            tasks.mask(name, rng.per_sample(KEY, jnp.arange(2)), (2, 2, 2), (1, 1, 1))
        return
    given = masks(name, (3, 4, 4), (1, 2, 2))[1]
    assert task.whole == (given.any((2, 3)) == given.all((2, 3))).all()
    assert task.fits((1, 4, 4)) == (name in ("text_to_video", "inpaint", "tokens"))


def named(mask):
    """The task of a mask of four frames, among those of ``MIX``."""
    if not mask.any():
        return "text_to_video"
    if (mask.any((1, 2)) != mask.all((1, 2))).any():
        return "inpaint"
    known = {(1, 0, 0, 0): "image_to_video", (1, 0, 0, 1): "in_between"}
    return known.get(tuple(mask[:, 0, 0].astype(int)), "inpaint")


SEEN = (4, 16, 16, 3)  # of which a box of whole frames is rare
MIX = ("text_to_video:weight=4", "image_to_video:weight=2", "in_between", "inpaint:weight=3")


def test_a_mix_draws_each_task_as_often_as_its_weight_says():
    mixed = tasks.mix(MIX)
    assert not mixed.whole
    ids = jnp.arange(4000)
    found = np.asarray(mixed.known(KEY, ids, SEEN, (1, 1, 1)))
    counts = collections.Counter(named(mask) for mask in found)
    shares = {"text_to_video": 0.4, "image_to_video": 0.2, "in_between": 0.1, "inpaint": 0.3}
    assert counts.keys() == shares.keys()
    for name, share in shares.items():
        error = (share * (1 - share) / 4000) ** 0.5
        assert counts[name] / 4000 == pytest.approx(share, abs=4 * error), name
    few = mixed.known(KEY, ids[7:9], SEEN, (1, 1, 1))
    np.testing.assert_array_equal(few, found[7:9])  # of an example's own key alone
    other = mixed.known(rng.root(6), ids, SEEN, (1, 1, 1))
    assert (np.asarray(other) != found).any((1, 2, 3)).mean() > 0.3


def test_an_image_draws_from_the_tasks_that_fit_it():
    mixed = tasks.mix(MIX)
    assert mixed.fitting((1, 3, 3)) == {0: pytest.approx(4 / 7), 3: pytest.approx(3 / 7)}
    assert mixed.fitting((2, 3, 3)) == {0: 4 / 9, 1: 2 / 9, 3: 3 / 9}
    images = np.asarray(mixed.known(KEY, jnp.arange(2000), (1, 6, 6, 3), (1, 2, 2)))
    bare = (~images.any((1, 2, 3))).mean()  # of 1 in 9 boxes too, which are all of the image
    assert bare == pytest.approx(4 / 7 + 3 / 7 / 9, abs=0.04)
    with pytest.raises(UserError, match="none of the tasks in_between, image_to_video is possible"):
        tasks.mix(("in_between", "image_to_video")).fitting((1, 3, 3))


def test_specs_that_say_nothing_sensible_are_refused():
    assert tasks.mix(()) is None
    for spec, message in (
        ("image2video", "did you mean 'image_to_video'"),
        ("extend:frame=2", "unknown keyword 'frame'"),
        ("extend:frames=0", "expected"),
        ("inpaint:weight=0", "expected"),
        ("tokens:share=2", "expected"),
    ):
        with pytest.raises(UserError, match=message):
            tasks.mix((spec,))
