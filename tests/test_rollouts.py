"""Clips longer than a model was trained on, by command and by the sampler."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from saved_run import TINY, save

from dit import media, rng, sample
from dit.draw import Sampler
from dit.experiment import build
from dit.recipe import Recipe
from dit.types import UserError

F, SIDE = 4, 4
DATA = {"name": "noise", "shape": (F, SIDE, SIDE, 3), "num_classes": 3}
FORCED = {"objective": {"name": "denoise", "level": "frame"}}
CAUSAL = {**TINY["model"], "depth": 2, "block": "modern", "frame_causal": True}
RECIPE = Recipe(labels=(0, 1), solver="heun", steps=2, batch=2)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    out = tmp_path_factory.mktemp("rollouts") / "run"
    save(out, DATA, model=CAUSAL, **FORCED)
    return out


def made(frames=F, model=CAUSAL, objective=FORCED["objective"], **more):
    one = build({**TINY, "data": DATA, "model": model, "objective": objective, **more})
    return one.shaped((frames, SIDE, SIDE, 3))


def moved(one):
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(one.init, rng.root(0))
    return jax.tree.map(lambda p: np.asarray(0.3 * draw.normal(size=p.shape), p.dtype), shapes)


def drawn(one, params, spec, task=None, **changes):
    """Samples before they are made bytes, and the network evaluations of each."""
    changes |= {} if task is None else {"task": task, "known": "clean"}
    sampler = Sampler(one, dataclasses.replace(RECIPE, rollout=spec, **changes))
    batch = {"id": np.arange(2), "label": sampler.labels}
    if task is not None:
        clip = np.random.default_rng(1).integers(0, 256, (2, *sampler.shape), np.uint8)
        batch |= {"start": clip, "mask": sampler.kept}
    found = []

    def kept(x, codec):
        found.append(x)
        return x

    def run(params, batch):
        return sampler.run(params, None, batch)[2], found.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "to_uint8", kept)
        calls, x = jax.jit(run)(params, batch)
    return np.asarray(x), sampler._count(int(calls), task is not None)


IN_TIME = "interval:scale=3,low=0.3,high=0.7,unit=time"


@pytest.mark.parametrize(
    "guidance",
    ["1", pytest.param("3", marks=pytest.mark.slow), pytest.param(IN_TIME, marks=pytest.mark.slow)],
)
def test_a_cache_draws_what_the_window_does_until_it_is_full(guidance):
    """With given frames, whose keys and values are made first, and a context that is shown noised."""
    one = made(F)
    params = moved(one)
    rest = {"task": "extend:frames=1", "guidance": guidance}
    got, calls = drawn(one, params, "autoregressive:cache=true,sinks=1,noise=0.1", **rest)
    expected, uncached = drawn(one, params, "autoregressive:noise=0.1", **rest)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got[:, 1:]).std() > 0.1
    writes = 4 * (1 if guidance == "1" else 2)  # of every frame
    assert calls == uncached + writes


@pytest.mark.slow
def test_longer_clips_begin_alike_in_constant_memory():
    params = moved(made())
    spec = "autoregressive:block=2,cache=true,sinks=1"
    short, _ = drawn(made(7), params, spec)
    long, _ = drawn(made(10), params, spec)
    np.testing.assert_allclose(long[:, :7], short, atol=1e-6)
    sizes = []
    for frames in (32, 128):
        sampler = Sampler(made(frames), dataclasses.replace(RECIPE, rollout=spec))
        batch = {"id": np.arange(2), "label": sampler.labels}
        compiled = jax.jit(sampler.run).lower(params, None, batch).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    clip = 2 * 96 * SIDE * SIDE * 3 * 4  # by which the longer clips are larger
    assert sizes[1] - sizes[0] < 4 * clip


def test_the_command_draws_them_and_a_picture_says_how(workdir, tmp_path):
    def run(out, *extra):
        sample.main([f"--workdir={workdir}", f"--out={tmp_path / out}", *extra])
        return media.read_recipe(str(tmp_path / out))

    first = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(first).save(tmp_path / "first.png")
    spec = "autoregressive:cache=true,sinks=1,noise=0.05"
    given = [f"--image={tmp_path / 'first.png'}", "--labels=0,2"]
    recipe = run("a.png", *given, "--frames=6", f"--rollout={spec}")
    assert recipe["rollout"] == spec
    assert recipe["nfe"] == 5 * 2 + 6
    again = run("b.png", f"--like={tmp_path / 'a.png'}", given[0])
    assert again == recipe
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    to = f"--out={tmp_path / 'c.npz'}"
    sample.main([f"--workdir={workdir}", to, *given, "--frames=6", f"--rollout={spec}"])
    clips = np.load(tmp_path / "c.npz")["samples"]
    assert clips.shape == (2, 6, SIDE, SIDE, 3)
    np.testing.assert_array_equal(clips[:, 0], np.stack([first, first]))


def test_what_a_model_was_not_trained_for_is_refused():
    plain = {"model": TINY["model"]}
    known = {"name": "denoise", "tasks": ("text_to_video", "extend")}
    tasks = made(6, objective=known, **plain)
    sampled = made(6, objective={"name": "denoise"}, **plain)
    forced = made(6, **plain)
    cases = [
        (sampled, "autoregressive", {}, "never trained with clean frames beside noisy ones"),
        (tasks, "pyramid", {}, "several noise levels.*objective.level=frame"),
        (tasks, "autoregressive:noise=0.1", {}, "noised context.*objective.level=frame"),
        (forced, "autoregressive:noise=2", {}, "got noise=2"),
        (forced, "autoregressive:cache=true", {}, "model.frame_causal=False"),
        (forced, "full", {}, "a rollout past memory: 6 frames"),
        (
            forced,
            "pyramid",
            {"task": "last_frame", "known": "clean"},
            "other than the first frames",
        ),
        (
            made(6),
            "autoregressive:cache=true",
            {"guidance": "autoguidance:scale=2"},
            "a cache of its",
        ),
        (
            made(6),
            "pyramid",
            {"solver": "pndm", "guidance": "interval:scale=2,low=0.3,high=0.7"},
            "begins .pndm., and how often then is not known",
        ),
    ]
    for one, spec, more, message in cases:
        with pytest.raises(UserError, match=message):
            Sampler(one, dataclasses.replace(RECIPE, rollout=spec, **more))
    with pytest.raises(UserError, match=r"a rollout and strength=0\.5"):
        dataclasses.replace(RECIPE, rollout="full", strength=0.5)
    sampler = Sampler(made(6), dataclasses.replace(RECIPE, rollout="pyramid"))
    clip = np.zeros((2, *sampler.shape), np.uint8)
    with pytest.raises(UserError, match="--init or --mask without a task"):
        sampler.check(False, {"start": clip})
    noised = dataclasses.replace(RECIPE, rollout="pyramid", task="image_to_video")
    with pytest.raises(UserError, match="known='noised'"):
        Sampler(made(6), noised).check(False, {"start": clip})


def test_a_model_of_teacher_forcing_is_rolled_out_in_its_blocks():
    """As it is: with a cache and without; and what it was not trained for is refused."""
    one = made(F, objective={"name": "teacher_forcing", "block": 2})
    params = moved(one)
    got, _ = drawn(one, params, "autoregressive:block=2,cache=true")
    expected, _ = drawn(one, params, "autoregressive:block=2")
    np.testing.assert_allclose(got, expected, atol=1e-5)
    Sampler(
        made(9, objective={"name": "teacher_forcing"}),
        dataclasses.replace(RECIPE, rollout="autoregressive:cache=true"),
    )
    for spec in (None, "full", "autoregressive:block=3"):
        with pytest.raises(
            UserError, match="trained by teacher_forcing to draw 2 after clean ones"
        ):
            Sampler(one, dataclasses.replace(RECIPE, rollout=spec))
    for spec in ("pyramid", "autoregressive:block=2,noise=0.1"):
        with pytest.raises(UserError, match=r"objective\.level=frame"):
            Sampler(one, dataclasses.replace(RECIPE, rollout=spec))


def test_a_model_that_knows_one_level_begins_with_its_whole_window():
    known = {"name": "denoise", "tasks": ("text_to_video", "extend")}
    one = made(9, model=TINY["model"], objective=known)
    params = moved(one)
    _, calls = drawn(one, params, "autoregressive:block=3")
    assert calls == 3 * 3  # blocks of 4, 3 and 2 frames, each by three evaluations
