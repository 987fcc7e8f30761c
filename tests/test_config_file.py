"""Config files: whatever Python makes of them is kept in plain values, or refused in one line."""

import json
import textwrap

import pytest

from dit import config_file
from dit.experiment import load_config
from dit.training.workdir import plain
from dit.types import UserError

HEAD = """
import dataclasses, enum, pathlib
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FieldReference, FrozenConfigDict
from ml_collections.config_dict import placeholder, required_placeholder

def base():
    return ConfigDict({
        "steps": 10, "batch_size": 8, "data": {"name": "digits"},
        "model": {"name": "dit", "depth": 1, "width": 32, "heads": 2},
        "path": {"name": "linear"}, "prediction": {"name": "velocity"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "warmup_constant", "warmup": 2},
    })

"""


@pytest.fixture
def written(tmp_path):
    """``written(body)``: a config file whose ``get_config`` has this body."""

    def write(body):
        file = tmp_path / "mine.py"
        file.write_text(
            HEAD + "def get_config():\n" + textwrap.indent(textwrap.dedent(body), "    ")
        )
        return str(file)

    return write


KEPT = {  # body of get_config: (field, what is kept of it)
    "a NumPy float": (
        "c = base(); c.optimizer.lr = np.float64(0.5); return c",
        "optimizer.lr",
        0.5,
    ),
    "a NumPy integer": ("c = base().to_dict(); c['steps'] = np.int64(7); return c", "steps", 7),
    "a NumPy boolean": (
        "c = base().to_dict(); c['model']['qk_norm'] = np.bool_(True); return c",
        "model.qk_norm",
        True,
    ),
    "an array": (
        "c = base(); c.ema = ConfigDict({'half_lives': np.array([5.0, 9.0])}); return c",
        "ema.half_lives",
        [5.0, 9.0],
    ),
    "a JAX number": ("c = base().to_dict(); c['steps'] = jnp.int32(7); return c", "steps", 7),
    "a frozen config": ("return FrozenConfigDict(base())", "model.width", 32),
    "a locked config": ("return base().lock()", "model.width", 32),
    "a dict": ("return base().to_dict()", "optimizer.lr", 1e-3),
    "a reference": (
        "c = base(); n = FieldReference(40); c.steps = n; c.schedule.warmup = n // 4; return c",
        "schedule.warmup",
        10,
    ),
    "a reference to a field": (
        "c = base(); c.schedule.warmup = c.get_ref('steps') // 5; return c",
        "schedule.warmup",
        2,
    ),
    "a placeholder that stays None": (
        "c = base(); c.optimizer.clip = placeholder(float); return c",
        "optimizer.clip",
        None,
    ),
    "None": ("c = base(); c.optimizer.clip = None; return c", "optimizer.clip", None),
    "a dataclass as a section": (
        "@dataclasses.dataclass\nclass Log:\n    every: int = 3\n"
        "c = base().to_dict(); c['log'] = Log(); return c",
        "log.every",
        3,
    ),
    "a dataclass as the config": (
        "C = dataclasses.make_dataclass('C', base().keys()); return C(**base().to_dict())",
        "model.width",
        32,
    ),
    "an enum": (
        "E = enum.Enum('E', {'A': 'adam'}); c = base().to_dict()\n"
        "c['optimizer']['name'] = E.A; return c",
        "optimizer.name",
        "adam",
    ),
    "a path": (
        "c = base().to_dict(); c['data'] = {'name': 'folder', 'path': pathlib.Path('x'), 'size': 8}\n"
        "return c",
        "data.path",
        "x",
    ),
}


def at(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("what", KEPT)
def test_what_a_config_file_holds_is_kept_in_plain_values(written, what):
    body, key, value = KEPT[what]
    kept = plain(load_config(written(body)))
    assert at(kept, key) == value
    assert type(at(kept, key)) is type(value)
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept


@pytest.mark.parametrize(
    ("body", "overrides"),
    [
        ("c = base(); c.schedule.warmup = c.get_ref('steps') // 5; return c", {"steps": 50}),
        (
            "c = base(); n = FieldReference(4); c.steps = n; c.schedule.warmup = n // 5; return c",
            {"steps": 50},
        ),
        (
            "c = base(); c.schedule.warmup = required_placeholder(int); return c",
            {"schedule.warmup": 10},
        ),
        ("c = base(); c.schedule.warmup = placeholder(int); return c", {"schedule.warmup": 10}),
        ("return FrozenConfigDict(base())", {"schedule.warmup": 10}),
    ],
)
def test_overrides_reach_references_and_placeholders(written, body, overrides):
    config = load_config(written(body), overrides)
    assert config.schedule.warmup == 10


REFUSED = {
    "a placeholder not filled": (
        "c = base(); c.steps = required_placeholder(int); return c",
        r"config.steps is a placeholder that was not filled: give --config.steps=VALUE",
    ),
    "computed from a placeholder": (
        "c = base(); n = placeholder(int); c.steps = n; c.schedule.warmup = n // 5; return c",
        r"steps=None|config.schedule.warmup could not be computed",
    ),
    "a function": ("c = base(); c.path.t_max = len; return c", r"config.path.t_max=<built-in"),
    "a dtype": (
        "c = base(); c.precision = ConfigDict({'compute': jnp.bfloat16}); return c",
        r"config.precision.compute=.*expected a number, text",
    ),
    "a set": ("c = base(); c.model.patch = {1}; return c", r"config.model.patch=\{1\} of type set"),
    "None as a section": ("c = base().to_dict(); c['ema'] = None; return c", r"config.ema=None"),
    "a number as a section": ("c = base().to_dict(); c['model'] = 3; return c", r"config.model=3"),
    "a name that is no text": (
        "c = base().to_dict(); c['model'] = {1: 2}; return c",
        r"a field named 1 in config.model",
    ),
    "nothing": ("pass", r"gave None; expected a ConfigDict"),
    "itself": ("c = base().to_dict(); c['model']['x'] = c; return c", r"config holds itself"),
    "an error": ("c = base()\nreturn c.nothing", r"error in the config .*mine.py, line 19: Attr"),
    "an argument": ("return 1 +", r"error in the config .*mine.py, line 18: SyntaxError"),
    "an import": ("import dit.nothing", r"error in the config .*line 18: ModuleNotFoundError"),
    "a NaN of NumPy": ("c = base(); c.optimizer.lr = np.float64('nan'); return c", r"lr=nan"),
    "an array of objects": (
        "c = base().to_dict(); c['ema'] = {'half_lives': np.array([len])}; return c",
        r"config.ema.half_lives\[0\]=",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_kept_is_refused_in_one_line(written, what):
    body, message = REFUSED[what]
    with pytest.raises(UserError, match=message) as error:
        load_config(written(body))
    assert "\n" not in str(error.value)


def test_configs_of_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits.py", "configs/digits.py", "configs/digits"):
        assert config_file.find(name).samefile(config_file.directory() / "digits.py")
    (tmp_path / "digits").mkdir()  # a run's directory hides nothing
    assert load_config("digits").data.name == "digits"
    (tmp_path / "digits.py").write_text("mine")  # but a file does
    assert config_file.find("digits.py").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["digitz", "digit.py", "configs/digit.py", "runs/digits.py", "", "/"]
)
def test_a_config_that_is_not_there_suggests_near_names(name):
    with pytest.raises(UserError, match=r"expected the path of a Python file, or .*digits"):
        config_file.find(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a/" * 3000])
def test_a_path_that_no_file_can_have_is_refused(name):
    with pytest.raises(UserError, match="config"):
        config_file.find(name)
