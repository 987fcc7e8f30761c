"""Prompts, from the command line to the picture and back; captions beneath pictures."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from captions import installed, told
from PIL import Image
from random_params import random_params
from saved_run import save

from dit import config as configs
from dit import evaluate, rng, sample, tiles, train
from dit.draw import Drawn, Sampler, load_experiment
from dit.experiment import build
from dit.media import read_recipe
from dit.preflight import programs
from dit.prompts import with_conditions
from dit.recipe import Recipe, recipe_from
from dit.scaling.flops import sampling_flops
from dit.scaling.jaxpr_flops import count_flops
from dit.training.checkpoint import Restored
from dit.training.state import TrainState
from dit.types import UserError

RULES = {"interval": "interval:scale=3,low=0.1,high=9", "cfgpp": "cfgpp:scale=0.6"}
GUIDANCE = [
    pytest.param(
        RULES.get(name, f"{name}:scale=3"),
        marks=[pytest.mark.slow] * (name not in ("cfg", "interval")),
    )
    for name in configs.names("sampling.guidance")
    if name != "autoguidance"
]


@pytest.fixture(scope="module", autouse=True)
def captioned():
    with installed():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run whose model reads text."""
    out = tmp_path_factory.mktemp("runs") / "text"
    save(out, **told())
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Of a run whose model has classes and no text."""
    out = tmp_path_factory.mktemp("runs") / "labels"
    data = {"name": "noise", "shape": (1, 4, 4, 1), "num_classes": 3}
    save(out, data, codec={"name": "latent", "scale": 1.0})
    return out


def pixels(workdir, out, *options):
    sample.main([f"--workdir={workdir}", f"--out={out}", "--steps=2", *options])
    return np.asarray(Image.open(out)) if out.suffix == ".png" else np.load(out)["samples"]


@pytest.mark.first
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_the_negative_prompt_takes_the_place_of_the_null_condition(guidance):
    """Without words it is the null condition; the prompt itself leaves nothing to be guided by."""
    made = build(told())
    params = random_params(made.init)
    recipe = Recipe(prompts=("white", "black"), solver="euler", steps=2, guidance=guidance)
    draw = lambda **changes: Sampler(made, dataclasses.replace(recipe, **changes))(params).samples  # noqa: E731
    plain, off = draw(), draw(guidance="1")
    assert (plain != off).any()
    np.testing.assert_allclose(draw(negative=("",)).astype(int), plain, atol=1)
    np.testing.assert_allclose(draw(negative=recipe.prompts).astype(int), off, atol=1)
    other = draw(negative=("black", "white"))
    assert (other != plain).any()
    np.testing.assert_array_equal(draw(negative=("black",))[0], other[0])


def test_a_prompt_is_drawn_and_drawn_again_from_the_picture(workdir, tmp_path):
    first = pixels(
        workdir, tmp_path / "a.png", "--prompt=white", "--prompt=né black", "--guidance=2"
    )
    stamp = read_recipe(tmp_path / "a.png")
    assert stamp["prompts"] == ["white", "né black"]
    assert "negative" not in stamp
    again = pixels(workdir, tmp_path / "b.png", f"--like={tmp_path / 'a.png'}")
    np.testing.assert_array_equal(first, again)
    other = pixels(workdir, tmp_path / "c.png", f"--like={tmp_path / 'a.png'}", "--negative=x")
    assert (other != first).any()
    assert read_recipe(tmp_path / "c.png")["negative"] == ["x"]
    same = pixels(workdir, tmp_path / "d.png", f"--like={tmp_path / 'c.png'}")
    np.testing.assert_array_equal(same, other)


def test_prompts_come_from_a_file_and_take_turns(workdir, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffwhite\r\n\n  black \n", encoding="utf-8")
    options = (f"--prompts={file}", "--num=3", "--seed=1")
    three = pixels(workdir, tmp_path / "a.npz", *options)
    found = np.load(tmp_path / "a.npz")
    assert found["captions"].tolist() == ["white", "black", "white"]
    two = pixels(workdir, tmp_path / "b.npz", "--prompt=white", "--prompt=black", "--seed=1")
    np.testing.assert_array_equal(three[:2], two)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], r"this model draws what a text says: give --prompt"),
        (["--num=2"], r"this model draws what a text says: give --prompt"),
        (["--prompt=a", "--prompts=b"], "got both --prompt and --prompts"),
        (["--prompts=nowhere.txt"], "no file 'nowhere.txt'"),
        (["--prompt=" + "a" * 40], r"takes 42 tokens; this model reads 32"),
        (["--prompt=a", "--negative=" + "a" * 40, "--guidance=2"], "takes 42 tokens"),
        (["--prompt=a", "--negative=b"], r"got a negative prompt with guidance '1.0'"),
        (["--prompt=a", *["--negative=b"] * 2, "--guidance=2"], "got 2 negative prompts for 1"),
        (["--negative=b", "--guidance=2"], "this model draws what a text says"),
        (["--labels=0", "--prompt=a"], r"labels"),
    ],
)
def test_prompts_that_cannot_work_are_refused(workdir, tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        pixels(workdir, tmp_path / "a.png", *options)


def test_an_empty_file_of_prompts_and_one_that_is_no_text_are_refused(workdir, tmp_path):
    for content, says in ((b"\n \n", "holds no prompts"), (b"\xff\xfea", "is not text in UTF-8")):
        (tmp_path / "prompts.txt").write_bytes(content)
        with pytest.raises(UserError, match=says):
            pixels(workdir, tmp_path / "a.png", f"--prompts={tmp_path / 'prompts.txt'}")


def test_a_model_without_text_refuses_a_prompt_by_name(labelled, tmp_path):
    for options in (["--prompt=a red circle"], ["--prompt=a red circle", "--labels=1"]):
        with pytest.raises(
            UserError, match="got the prompt 'a red circle' for a model without text"
        ):
            pixels(labelled, tmp_path / "a.npz", *options)


def test_recipes_keep_the_ids_of_results_and_take_turns():
    old = Recipe(labels=(0, 1)).settings()
    assert not {"known", "prompts", "negative"} & old.keys()
    told = Recipe(prompts=("a", "b"), negative=("c",))
    assert told.count == 2
    assert {"prompts", "negative"} <= told.settings().keys()
    settings = {**dataclasses.asdict(told), "num": 3}
    assert recipe_from(settings, None).prompts == ("a", "b", "a")
    assert recipe_from({**settings, "negative": ["c", "d"]}, 2).negative == ("c", "d", "c")
    assert recipe_from(settings, 2).labels == (0, 1, 0)
    with pytest.raises(UserError, match="got 1 labels and 2 prompts"):
        Recipe(labels=(0,), prompts=("a", "b"))


def test_samples_are_given_the_captions_of_held_out_data_or_the_config_s():
    made = build(told(num_classes=2))
    recipe, given = with_conditions(made, Recipe(labels=(1, 0, 1, 0)))
    assert given == {}
    rows = [made.source.held_out[i] for i in range(4)]
    assert recipe.labels == tuple(row["label"] for row in rows)
    for row, words in zip(rows, Sampler(made, recipe).words["tokens"], strict=True):
        np.testing.assert_array_equal(row["tokens"], words)
    asked = Recipe(labels=(1, 0), prompts=("a", "b"))
    assert with_conditions(made, asked) == (asked, {})


@pytest.mark.parametrize("prompts", [(), ("a picture that is all white", "black")], ids=len)
def test_training_draws_its_prompts_beneath_the_pictures(tmp_path, monkeypatch, prompts):
    config = told()
    config["samples"] = {**config["samples"], "prompts": prompts}
    made = build(config)
    blank = np.zeros((4, *made.shape), np.uint8)
    paint = train.painter(made, tmp_path)
    monkeypatch.setattr(
        Sampler, "__call__", lambda self, params, **given: Drawn(blank, None, 1, 0.0)
    )
    monkeypatch.setattr(train, "taken_from", lambda state: Restored({}, 1, "params", "0"))
    paint(object.__new__(TrainState), 1)
    (file,) = (tmp_path / "samples").glob("*.png")
    expected = (
        [prompts[i % 2] for i in range(4)] if prompts else list(made.captions_of("held_out", 4))
    )
    assert read_recipe(file)["prompts"] == expected
    assert (np.asarray(Image.open(file)) > 200).any()  # letters, as the pictures are black


@pytest.mark.first
@pytest.mark.parametrize(
    ("split", "blank"), [("held_out", False), ("held_out", True), ("train", False)]
)
def test_samples_are_judged_by_captions_of_the_data(workdir, tmp_path, monkeypatch, split, blank):
    """With ``--blank`` too, but those are not what they were drawn by."""
    judged, given = {}, []

    class Evaluation:
        figures, left_out, size = ("nothing",), {}, 4

        def __call__(self, samples, labels):
            judged["samples"] = samples
            return {"nothing": 0.0}

    def sampler(experiment, recipe):
        given.append(recipe.prompts)
        return Sampler(experiment, recipe)

    monkeypatch.setattr(evaluate, "Sampler", sampler)
    monkeypatch.setattr(evaluate, "evaluation_of", lambda *of: judged.update(by=of) or Evaluation())
    out = tmp_path / "e.json"
    options = [f"--workdir={workdir}", "--num=4", f"--out={out}", *["--blank"] * blank]
    options += ["--split=train"] if split == "train" else []
    assert evaluate.main([*options, "--guidance=2", "--negative=black"]) == 0
    recipe = json.loads(out.read_text())["recipe"]
    captions = load_experiment(str(workdir)).captions_of(split, 4)
    assert judged["by"][1:] == (4, captions, split, [], None)
    assert given == [("",) * 4 if blank else captions]
    said = f"the captions of 4 {'training' if split == 'train' else 'held-out'} examples"
    assert recipe["prompts"] == (f"empty, and judged by {said}" if blank else said)
    assert recipe["negative"] == ["black"]
    made = load_experiment(str(workdir))
    asked = recipe_from({**made.config.samples, "num": 4, "guidance": 2.0}, None)
    asked = dataclasses.replace(
        asked, prompts=made.captions_of("held_out", 4), negative=("black",), guidance="2"
    )
    assert Sampler(made, asked).n == 4
    assert judged["samples"].shape == (4, 1, 4, 4, 1)


def test_only_a_model_that_is_given_prompts_can_go_without(tmp_path):
    save(tmp_path / "run", {"name": "digits"})
    with pytest.raises(UserError, match="got --blank for a model that is given no prompts"):
        evaluate.main([f"--workdir={tmp_path}/run", "--num=4", "--blank"])


def test_preflight_reports_on_a_sampler_of_prompts():
    from dit.parallel.topology import find

    config = told()
    made = build({**config, "samples": {**config["samples"], "batch": 8, "guidance": 2.0}})
    found = programs.sampler(made, find("cpu:8", 1))
    assert found.fits
    assert found.images == 8


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_text_is_encoded_once_for_all_evaluations(guidance):
    """The products in the sampler's program are those that preflight counts."""
    config = told()
    experiment = build({**config, "samples": {**config["samples"], "guidance": guidance}})
    settings = {**experiment.config.samples.to_dict(), "num": 2, "prompts": ("a", "b")}
    draw = Sampler(experiment, recipe_from(settings, experiment.num_classes))
    params = jax.eval_shape(experiment.init, rng.root(0))
    batch = {"id": np.arange(2), **draw.words}
    each = sampling_flops(experiment.model, experiment.shape, draw.evaluations())
    assert count_flops(draw.run, params, None, batch) == 2 * each


def test_captions_are_written_beneath_their_pictures():
    clips = np.zeros((5, 1, 8, 8, 3), np.uint8)
    captions = ["", "a small red circle left of a large blue square", "x", "", "y"]
    rows = tiles.rows_of(5, None)
    plain, lettered = tiles.tile(clips, rows), tiles.tile(clips, rows, captions)
    factor = tiles.enlargement(rows, (8, 8, 3), captions)
    assert 8 * factor >= tiles.LETTERED
    assert plain.shape[0] < lettered.shape[0]
    lines = tiles.wrapped(captions[1], 8 * factor)
    assert " ".join(lines) == captions[1]
    assert 1 < len(lines) <= tiles.LINES
    pitch = 9 * factor + len(lines) * tiles.LINE
    bright = lettered > 200
    for i, caption in enumerate(captions):
        r, k = divmod(i, 3)
        beneath = bright[
            r * pitch + 9 * factor : (r + 1) * pitch, k * 9 * factor : (k + 1) * 9 * factor
        ]
        assert beneath.any() == bool(caption), i
    assert not bright[: 9 * factor].any()  # on no picture


def test_long_captions_end_in_an_ellipsis_and_all_lines_fit():
    for text in ("word " * 200, "a" * 500, "🟥 mañana\n日本 \ud800" * 30):
        lines = tiles.wrapped(text, 100)
        assert len(lines) == tiles.LINES
        assert lines[-1].endswith("…")
        assert all(tiles._font().getlength(line) <= 112 for line in lines)
    assert tiles.wrapped("ab", 1) == ("a", "b")
    clips = np.zeros((3, 4, 8, 8, 1), np.uint8)
    strip = tiles.tile(clips, tiles.strips_of((3, 4), None), ["one clip", "two", "three"])
    assert (strip > 200).any()
