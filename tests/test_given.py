"""From pictures and clips in files to samples that go on from them: given frames stay as they are."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_params import random_params
from saved_run import TINY, save

from dit import edits, given, media, sample
from dit.draw import Sampler, load
from dit.experiment import build
from dit.recipe import Recipe
from dit.types import UserError

F, SIDE = 5, 8
DATA = {"name": "noise", "shape": (F, SIDE, SIDE, 3), "num_classes": 3}
WHOLE = ("text_to_video:weight=2", "image_to_video", "in_between", "extend")


def changes(tasks, **objective):
    """Of a config: a mix of tasks, and numbers of patches that differ along the axes."""
    model = {**TINY["model"], "patch": (1, 4, 2)}
    return {"objective": {"name": "denoise", "tasks": tasks, **objective}, "model": model}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    out = tmp_path_factory.mktemp("given") / "run"
    save(out, DATA, **changes(WHOLE))
    return out


@pytest.fixture
def clip():
    return np.random.default_rng(1).integers(0, 256, (F, SIDE, SIDE, 3), np.uint8)


def webp(frames, path, length=125):
    pages = [Image.fromarray(x) for x in frames]
    pages[0].save(
        path, "WEBP", save_all=True, append_images=pages[1:], duration=length, lossless=True
    )
    return path


def png(frame, path):
    Image.fromarray(frame).save(path)
    return path


@pytest.fixture
def asked(monkeypatch):
    """What the command asks a sampler for, which draws nothing: its recipe and its inputs."""
    found = []

    def drawn(self, params, put, *, weak=None, **inputs):
        self.check(False, {k: v for k, v in inputs.items() if v is not None})
        found.append((self.recipe, self._with_task(inputs)))
        put(np.zeros((self.n, *self.shape), np.uint8))
        return 1, 0.0

    monkeypatch.setattr(Sampler, "draw", drawn)
    return found


def draw(workdir, out, *extra):
    sample.main([f"--workdir={workdir}", f"--out={out}", "--labels=0,1", *map(str, extra)])
    return out


def test_files_say_the_task_and_which_frames_are_given(workdir, tmp_path, clip, asked):
    first = f"--image={png(clip[0], tmp_path / '0.png')}"
    last = f"--last={png(clip[4], tmp_path / '4.png')}"
    video = f"--video={webp(clip, tmp_path / 'all.webp')}"
    three = f"--video={webp(clip[:3], tmp_path / 'three.webp')}"
    cases = {  # the options, the frames that are given, and which of the clip's they are
        (first,): ("image_to_video", [0], [0]),
        (last,): ("last_frame", [4], [4]),
        (first, last): ("in_between", [0, 4], [0, 4]),
        (video, "--task=in_between"): ("in_between", [0, 4], [0, 4]),
        (video, "--task=extend:frames=2"): ("extend:frames=2", [0, 1], [3, 4]),
        (three, "--task=extend"): ("extend:frames=3", [0, 1, 2], [0, 1, 2]),
        (three, "--task=extend_back"): ("extend_back:frames=3", [2, 3, 4], [0, 1, 2]),
    }
    for options, (task, places, which) in cases.items():
        draw(workdir, tmp_path / "x.npz", *options)
        recipe, inputs = asked[-1]
        assert (recipe.task, recipe.known) == (task, "clean")
        kept = np.isin(np.arange(F), places)
        assert (inputs["mask"] == kept[:, None, None, None]).all()
        for start in inputs["start"]:
            np.testing.assert_array_equal(start[places], clip[which], str(options))
    draw(workdir, tmp_path / "x.npz", first, "--known=noised")
    assert asked[-1][0].known == "noised"
    draw(workdir, tmp_path / "x.npz", video, "--strength=0.5")
    recipe, inputs = asked[-1]
    assert (recipe.task, recipe.strength) == (None, 0.5)
    np.testing.assert_array_equal(inputs["start"], np.stack([clip, clip]))
    assert "mask" not in inputs


def test_like_needs_the_same_files(workdir, tmp_path, clip, asked):
    three = f"--video={webp(clip[:3], tmp_path / 'three.webp')}"
    other = f"--video={webp(clip[2:], tmp_path / 'other.webp')}"
    first = draw(workdir, tmp_path / "a.png", three, "--task=extend_back")
    stamp = media.read_recipe(first)
    assert (stamp["task"], stamp["known"]) == ("extend_back:frames=3", "clean")
    assert list(stamp["inputs"]) == ["video"]
    again = tmp_path / "b.png"
    arguments = [f"--workdir={workdir}", f"--like={first}", f"--out={again}"]
    for wrong in ([], [other]):
        with pytest.raises(UserError, match="was made with --video, of digest"):
            sample.main([*arguments, *wrong])
    sample.main([*arguments, three])
    assert again.read_bytes() == first.read_bytes()
    assert asked[0][0] == asked[1][0]


def test_given_frames_stay_and_the_others_follow_them(workdir, clip):
    experiment, restored = load(str(workdir))
    assert experiment.level == "frame"
    recipe = Recipe(labels=(0, 1), steps=2, known="clean", task="in_between")
    sampler, start = Sampler(experiment, recipe), np.stack([clip, clip[::-1]])
    drawn = sampler(restored.params, start=start).samples
    np.testing.assert_array_equal(drawn[:, [0, 4]], start[:, [0, 4]])
    hidden = np.where(sampler.kept, start, 255 - start)
    np.testing.assert_array_equal(sampler(restored.params, start=hidden).samples, drawn)
    changed = sampler(restored.params, start=np.where(sampler.kept, 255 - start, start)).samples
    assert (changed != drawn)[:, 1:4].any((1, 2, 3, 4)).all()


def test_options_that_do_not_serve_are_refused_in_one_line(workdir, tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    png(np.zeros((6, 9, 3), np.uint8), "small.png")
    webp(clip, "all.webp")
    webp(clip[:3], "three.webp")
    for options, message in (
        (["--image=small.png"], r"'small.png' is of 6x9 pixels .*; expected 8x8, .* --size=6x9"),
        (["--video=all.webp", "--task=extend"], r"none of the tasks extend:frames=5 is possible"),
        (["--video=three.webp", "--task=extend:frames=4"], r"has 3 frames; the task needs 4"),
        (["--video=three.webp", "--strength=0.5"], r"the video has 3 frames; expected 5"),
        (["--video=three.webp"], r"got --video and not what to do with it"),
        (["--video=three.webp", "--image=small.png"], r"got --video and --image"),
        (["--image=small.png", "--init=x.npz"], r"got --init and --image"),
        (["--image=small.png", "--task=extend"], r"with --image, which means image_to_video"),
        (["--task=extend"], r"got --task=extend and nothing that it is given"),
        (["--video=three.webp", "--task=text_to_video"], r"nothing that it is given"),
        (["--video=all.webp", "--task=extend", "--mask=m.npz"], r"got --mask and --task=extend"),
        (["--video=all.webp", "--task=imge"], r"no tasks 'imge'"),
        (["--video=all.webp", "--task=inpaint"], r"keeps a part of frame"),
        (["--image=small.png", "--strength=0.5"], r"--strength is of no effect without"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            draw(workdir, tmp_path / "x.npz", *options)
        assert "\n" not in str(caught.value)


def test_a_box_is_drawn_anew_and_differs_between_samples():
    """By a model whose tokens have times of their own, though all that is drawn has one level."""
    experiment = build({**TINY, "data": DATA, **changes(("text_to_video", "inpaint"))})
    assert experiment.level == "token"
    params = random_params(experiment.init)
    recipe = Recipe(labels=(0, 1, 2), steps=2, known="clean", task="inpaint", seed=3)
    start = np.random.default_rng(0).integers(0, 256, (3, F, SIDE, SIDE, 3), np.uint8)
    sampler = Sampler(experiment, recipe)
    drawn, kept = sampler(params, start=start).samples, sampler.kept
    np.testing.assert_array_equal(drawn[kept], start[kept])
    assert len({mask.tobytes() for mask in kept}) == 3
    changed = sampler(params, start=np.where(kept, 255 - start, start)).samples
    assert (changed != drawn)[~kept].any()
    lossy = dataclasses.replace(
        experiment.codec, decode=lambda params, z: jnp.clip(0.5 * z, -0.5, 0.5)
    )
    dim = Sampler(dataclasses.replace(experiment, codec=lossy), recipe)(params, start=start).samples
    np.testing.assert_array_equal(dim[kept], start[kept])  # as it went in, whatever the codec makes
    assert np.abs(dim[~kept].astype(int) - 127.5).max() <= 65


def test_what_is_hidden_is_the_nearest_that_is_given():
    start = np.arange(2 * 5, dtype=np.uint8).reshape(1, 5, 1, 2, 1)
    mask = np.zeros((1, 5, 1, 2, 1), bool)
    mask[0, [0, 4], 0, 0] = True
    found = edits.hidden(start, mask)
    np.testing.assert_array_equal(found[0, :, 0, 0, 0], start[0, [0, 0, 0, 4, 4], 0, 0, 0])
    np.testing.assert_array_equal(found[0, :, 0, 1, 0], edits.GREY)


def test_frames_of_one_token_are_given_together():
    experiment = build(
        {
            **TINY,
            "data": {**DATA, "shape": (6, SIDE, SIDE, 3)},
            **changes(("text_to_video", "extend")),
            "model": {**TINY["model"], "patch": (2, 4, 4)},
        }
    )
    shape = (6, SIDE, SIDE, 3)
    frame = {"image": np.zeros((1, *shape[1:]), np.uint8)}
    recipe = given.with_task(Recipe(labels=(0,)), experiment, frame, None)
    with pytest.raises(UserError, match="a file has 1 frames; the task needs 2 of it"):
        given.start_of(frame, edits.mask_of(experiment, recipe), recipe, shape)
    video = {"video": np.zeros((4, *shape[1:]), np.uint8)}
    asked = Recipe(labels=(0,), task="extend")
    assert given.with_task(asked, experiment, video, None).task == "extend:frames=2"
    with pytest.raises(UserError, match="has 3 frames, and frames of tokens of this model"):
        given.with_task(asked, experiment, {"video": video["video"][:3]}, None)
