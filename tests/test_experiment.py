"""Configs become experiments: every shipped one builds, and every mistake is named."""

import pathlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from shrunken import CONFIGS, shrunken, stand_ins

from dit import models, objectives
from dit.experiment import build, load_config
from dit.parallel import frozen
from dit.parallel.mesh import make_mesh
from dit.sections import complete
from dit.training import optimizer as optimizers
from dit.training.step import objective, told
from dit.training.workdir import differences
from dit.types import UserError, masks

ROOT = pathlib.Path(__file__).parent.parent
PARAMETERS = {  # with the paper's fixed position table (tokens x width) left out
    "imagenet256_dit_s2": 32_963_360 - 256 * 384,
    "imagenet256_dit_b2": 130_512_416 - 256 * 768,
    "imagenet256_dit_l2": 458_102_816 - 256 * 1024,
    "imagenet256_dit_xl2": 675_129_632 - 256 * 1152,
}
QUICK = ("digits", "video_7b_pod")  # and no two are less alike
# Whose kinds of run have tests of their own, or are that of another config.
ELSEWHERE = (
    "digits_unet",
    "emoji_autoencoder",
    "mixed_packed",
    "shapes_text",
    "wan_14b_pod",
    "world_forcing",
)
DIGITS = str(ROOT / "configs/digits.py")


@pytest.mark.first
@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_every_config_builds_at_full_size_without_arrays(file, tmp_path):
    few = stand_ins(tmp_path, load_config(str(file)), each=2)
    experiment = build(load_config(str(file), few))
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    count = models.count_params(shapes)
    assert count == PARAMETERS.get(file.stem, count)
    abstract, example = jax.ShapeDtypeStruct, experiment.source.train[0]
    batch = {
        "x": abstract((4, *example["x"].shape), example["x"].dtype),
        "label": abstract((4,), jnp.int32),
        "id": abstract((4,), jnp.int32),
    }
    if experiment.num_classes is None:
        del batch["label"]
    if experiment.conditions:
        names = {*experiment.conditions, *masks(experiment.conditions)} & example.keys()
        batch |= {name: abstract((4, *example[name].shape), example[name].dtype) for name in names}
    networks = {
        name: jax.eval_shape(partial(experiment.init_of, phase.network), jax.random.key(0))
        for name, phase in objectives.phases(experiment.loss).items()
    }
    beside = told({**networks, **frozen.shapes(experiment.frozen)}, abstract((), jnp.int32))
    parts = experiment.loss, experiment.apply_fn, experiment.process, experiment.codec.encode
    loss, metrics = jax.eval_shape(
        lambda p, b, beside: objective(*parts, experiment.tell)(p, b, jax.random.key(0), **beside),
        shapes,
        batch,
        beside,
    )
    assert loss.shape == ()
    assert ("vb" in metrics) == ("_dit_" in file.stem)
    assert experiment.axes.keys() == shapes.keys()


def marks(name):
    return [pytest.mark.slow] * (name not in QUICK) + [pytest.mark.exhaustive] * (name in ELSEWHERE)


@pytest.mark.parametrize(
    "file", [pytest.param(f, marks=marks(f.stem)) for f in CONFIGS], ids=lambda f: f.stem
)
def test_every_config_trains_two_steps_when_shrunken(file, tmp_path):
    from dit.training.loop import train

    experiment = build(shrunken(file, tmp_path))
    outcome = train(
        experiment,
        tmp_path / "run",
        batches=experiment.batches(),
        devices=jax.devices()[:1],
        progress=False,
    )
    assert outcome.step == 2
    assert not bool(outcome.state.meter.bad)


def test_defaults_are_filled_in_and_can_all_be_overridden():
    config = load_config(DIGITS, {"optimizer.eps": 1e-6, "model.qk_norm": False, "mesh.fsdp": 2})
    assert config.optimizer.eps == 1e-6
    assert config.optimizer.name == "adamw"
    assert config.weight.name == "none"
    assert (config.mesh.preset, config.mesh.fsdp, config.mesh.data) == ("dp", 2, None)


def test_a_new_name_starts_its_section_afresh_and_keeps_what_it_shares():
    config = load_config(DIGITS, {"optimizer.name": "muon", "path.name": "cosine"})
    assert config.optimizer.lr == load_config(DIGITS).optimizer.lr
    assert "time_scale" in config.path
    experiment = build(config)
    mesh = make_mesh({}, jax.devices()[:1])
    assert mesh.size == 1
    optimizers.build(
        config.optimizer.to_dict(),
        config.schedule.to_dict(),
        steps=config.steps,
        axes=experiment.axes,
    )


def test_tfds_names_its_data_set_after_a_colon():
    config = complete({**load_config(DIGITS), "data": {"name": "tfds:mnist"}})
    assert config.data.name == "tfds"
    assert config.data.dataset == "mnist"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.lrr": 1}, r"unknown config field 'optimizer.lrr': did you mean"),
        ({"optimiser.lr": 1}, r"unknown config field 'optimiser.lr': did you mean 'optimizer.lr'"),
        ({"optimizer.lr": float("nan")}, r"got optimizer.lr=nan; expected a finite number"),
        ({"optimizer.name": "adamx"}, r"no optimizers 'adamx': did you mean 'adam'"),
        ({"steps": -5}, r"got steps=-5; expected a whole number in \[1, "),
        ({"steps": 1.5}, r"got steps=1.5; expected a whole number"),
        ({"log.every": 0}, r"got log.every=0; expected a whole number in \[1, "),
        ({"checkpoint.keep": 0}, r"got checkpoint.keep=0; expected a whole number in \[1, "),
        ({"model": 3}, r"config.model is a section"),
        ({"ema.half_lives": (0.0,)}, r"got ema.half_lives="),
        ({"samples.solver": 3}, r"got samples.solver=3; expected text"),
    ],
)
def test_bad_overrides_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(DIGITS, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.width": 100, "model.heads": 3}, r"width=100 and heads=3"),
        ({"model.depth": "six"}, r"got model.depth='six' of type str"),
        ({"model.patch": 3}, r"patch"),
        ({"prediction.name": "eps"}, r"prediction 'eps' is undefined on this path at t = 1"),
        ({"weight.name": "edm", "prediction.name": "x0"}, r"weight 'edm' is infinite at t = 0"),
        ({"precision.compute": "int8"}, r"precision.compute='int8'"),
        (
            {"objective.condition_dropout": 3.0},
            r"objective.condition_dropout=3.0; expected a number in \[0, 1\]",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(overrides, message):
    def make():
        experiment = build(load_config(DIGITS, overrides))
        jax.eval_shape(experiment.init, jax.random.key(0))

    with pytest.raises(UserError, match=message):
        make()


def test_config_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"no config file .*expected the path of a Python file"):
        load_config(str(tmp_path / "none.py"))
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"has no get_config\(\)"):
        load_config(str(empty))


def mixture(*parts):
    return {**load_config(DIGITS), "data": {"name": "mixture", "parts": parts}}


def test_parts_of_a_mixture_are_completed_like_sections():
    config = complete(mixture({"name": "digits"}, {"name": "tfds:mnist", "size": 8}))
    assert config == complete(config)
    first, second = config.data.parts
    assert first == {"name": "digits", "held_out": 297, "split_seed": 0}
    assert (second["name"], second["dataset"], second["flip"]) == ("tfds", "mnist", False)
    other = complete(mixture({"name": "digits"}, {"name": "tfds:mnist", "size": 9}))
    assert differences(config.to_dict(), other.to_dict()) == {"data.parts[1].size": [8, 9]}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"name": "moving_digits", "fraems": 2},
            "field 'data.parts[1].fraems': did you mean 'data",
        ),
        ({"name": "moving_digits", "frames": 0}, "got data.parts[1].frames=0; expected a whole"),
        (
            {"name": "folder", "size": 8},
            "the config lacks data.parts[1].path: set them in the file",
        ),
        ({"frames": 2}, "the config lacks data.parts[1].name"),
        ({"name": "moving_digit"}, "did you mean 'moving_digits'"),
        ({"name": 3}, "got config.data.parts[1].name=3"),
        (3, "got config.data.parts[1]=3; expected a section"),
    ],
    ids=str,
)
def test_a_mistake_in_a_part_of_a_mixture_is_named_with_its_place(part, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        complete(mixture({"name": "digits"}, part))
    assert "--config.data.parts[" not in str(error.value)


def test_wired_keywords_and_unknown_sections_are_refused():
    base = load_config(DIGITS)
    with pytest.raises(UserError, match=r"got config.model.in_channels; it follows from other"):
        complete({**base, "model": {**base.model, "in_channels": 3}})
    with pytest.raises(UserError, match=r"unknown config section 'modle': did you mean 'model'"):
        complete({**base, "modle": {}})
