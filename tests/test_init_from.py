"""``init_from``: a new run that begins with parameters of another, of a file, or with a part of them."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dit import config, draw, models, train
from dit.experiment import build, load_config
from dit.init_from import matching
from dit.training.checkpoint import restore_params, steps
from dit.types import UserError

RUN = (
    *("--config=digits", "--config.batch_size=8", "--config.schedule.name=constant"),
    *("--config.model.depth=1", "--config.model.width=16", "--config.model.heads=2"),
    *("--config.samples.every=0", "--config.samples.num=0", "--config.log.every=1"),
    *(
        "--config.ema.half_lives=(1.0,)",
        "--config.model.patch=4",
        "--config.model.block=adaln_zero",
    ),
    "--config.model.positions=sincos",
)
STILL = ("--config.steps=1", "--config.optimizer.lr=1e-12", "--config.optimizer.weight_decay=0")


def params_of(workdir, which):
    experiment = draw.load_experiment(str(workdir))
    abstract = jax.eval_shape(experiment.init, jax.random.key(0))
    return flatten_dict(restore_params(workdir, abstract, which=which).params, sep="/")


def begun(workdir, *more):
    """The parameters after a step that moves none of them."""
    assert train.main([*RUN, *STILL, f"--workdir={workdir}", *more]) in (0, None)
    return params_of(workdir, "params")


def assert_same(found, expected):
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source") / "run"
    train.main([*RUN, "--config.steps=3", "--config.checkpoint.every=2", f"--workdir={workdir}"])
    assert steps(workdir) == [2, 3]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("which", ["params", None])
def test_a_run_begins_with_the_parameters_or_an_average_of_another(source, tmp_path, which, capsys):
    asked = [] if which is None else [f"--config.init_from.which={which}"]
    found = begun(tmp_path / "run", f"--config.init_from.path={source}", *asked)
    assert_same(found, params_of(source, which or "ema_1"))
    assert not np.allclose(
        found["final/linear/kernel"],
        params_of(source, "ema_1" if which else "params")["final/linear/kernel"],
        atol=1e-9,
    )
    assert f"{which or 'ema_1'} of step 3" in capsys.readouterr().out
    assert_same(params_of(tmp_path / "run", "ema_1"), found)  # averages begin there too


@pytest.mark.slow
def test_a_part_is_taken_and_the_rest_is_random(source, tmp_path):
    """Of a model whose other arrays do not fit, even."""
    part = ["--config.init_from.only=blocks/*", "--config.model.patch=2"]
    found = begun(tmp_path / "a", f"--config.init_from.path={source}", *part)
    fresh = begun(tmp_path / "b", "--config.model.patch=2")
    given = params_of(source, "ema_1")
    for name, x in found.items():
        expected = given if name.startswith("blocks/") else fresh
        np.testing.assert_allclose(x, expected[name], atol=1e-9, err_msg=name)
    with pytest.raises(UserError, match="holds other arrays than this model"):
        begun(tmp_path / "c", f"--config.init_from.path={source}", "--config.model.patch=2")


@pytest.mark.slow
def test_a_run_that_goes_on_needs_its_beginning_no_more(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    from_copy = [*RUN, f"--workdir={tmp_path / 'run'}", f"--config.init_from.path={copy}"]
    train.main([*from_copy, "--config.steps=2"])
    shutil.rmtree(copy)
    train.main([*from_copy, "--config.steps=4"])
    assert steps(tmp_path / "run")[-1] == 4
    with pytest.raises(UserError, match="init_from"):
        train.main([*from_copy[:-1], "--config.steps=5"])  # it is a part of what the run is


@pytest.mark.slow
def test_a_step_is_chosen(source, tmp_path):
    found = begun(
        tmp_path / "run", f"--config.init_from.path={source}", "--config.init_from.step=2"
    )
    assert not np.allclose(
        found["embed/kernel"], params_of(source, "ema_1")["embed/kernel"], atol=1e-9
    )
    with pytest.raises(UserError, match="no checkpoint at step 7"):
        begun(tmp_path / "x", f"--config.init_from.path={source}", "--config.init_from.step=7")


def safetensors(path, state):
    header, data = {}, b""
    for name, x in state.items():
        raw = np.ascontiguousarray(x, "<f4").tobytes()
        ends = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": ends}
        data += raw
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


@pytest.mark.slow
def test_weights_of_a_file(source, tmp_path):
    experiment = draw.load_experiment(str(source))
    params = models.init(experiment.model, jax.random.key(5), experiment.shape)
    original = config.resolve("interop", "dit_original")
    state = original.to_state(params, experiment.model, experiment.shape)
    safetensors(tmp_path / "w.safetensors", state)
    asked = f"--config.init_from.path={tmp_path}/w.safetensors", "--config.init_from.format="
    found = begun(tmp_path / "run", asked[0], asked[1] + "dit_original")
    assert_same(found, flatten_dict(params, sep="/"))
    with pytest.raises(UserError, match="did you mean 'dit_original'"):
        begun(tmp_path / "x", asked[0], asked[1] + "dit_orignal")


@pytest.mark.parametrize("name", ["dit_original", "diffusers_dit"])
@pytest.mark.parametrize(
    ("more", "taken"),
    [
        ({"pooled_dim": 3}, "pooled"),
        ({"second_time": True}, "r"),
        ({"concat_channels": 1}, "concat"),
    ],
)
def test_a_format_drops_no_parameters_of_other_conditions(name, more, taken):
    sizes = {"depth": 1, "width": 16, "heads": 2, "in_channels": 1, "num_classes": 3}
    model = config.resolve("models", "dit", **sizes, **more)
    params = jax.eval_shape(lambda: models.init(model, jax.random.key(0), (1, 8, 8, 1)))
    with pytest.raises(UserError, match=rf"the conditions .*'{taken}'"):
        config.resolve("interop", name).to_state(params, model, (1, 8, 8, 1))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"which": "params"}, "no init_from.path"),
        ({"path": "x", "format": "dit_original", "step": 1}, "only a run has steps"),
        ({"path": "nowhere"}, "no checkpoint in nowhere"),
        ({"path": "x", "only": ("blocks/*", "blokcs/*")}, "'blokcs/\\*', which is the name of no"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(section, message, tmp_path):
    settings = {f"init_from.{k}": v for k, v in section.items()}

    def refused():
        experiment = build(load_config("digits", settings))
        experiment.initial(jax.eval_shape(experiment.init, jax.random.key(0)))

    with pytest.raises(UserError, match=message):
        refused()


def test_patterns():
    names = ["blocks/a", "blocks/b/c", "embed/kernel"]
    assert matching(names, "blocks/*") == names[:2]
    assert matching(names, ("embed/*", "*/c")) == names[1:]
