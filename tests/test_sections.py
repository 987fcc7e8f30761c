"""Every section, every name and every number of a config: what is senseless is refused at once.

The tests find the build functions themselves, so that a new one is tested the day it appears.
"""

import itertools
import math
import types
import typing
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config as configs
from dit.diffusion.paths import linear
from dit.diffusion.predictions import v
from dit.diffusion.process import Process
from dit.diffusion.times import draw
from dit.draw import Recipe
from dit.experiment import load_config
from dit.sections import PLAIN, ROOMS, WIRED, complete, numbers, override
from dit.training import ema
from dit.training import optimizer as optimizers
from dit.types import Range, UserError

DIGITS = "configs/digits.py"
SAMPLING = ["sampling.solvers", "sampling.grids", "sampling.guidance"]
BUILDS = {
    **{
        f"{room} {name}": configs.builder(room, name)
        for room in [*ROOMS.values(), "models.blocks", *SAMPLING]
        for name in configs.names(room)
    },
    **{f"section {name}": build for name, build in PLAIN.items()},
    "a config": numbers,
    "optimizers": optimizers.common,
}


def leaves(hint):
    """The types in a type, each with the ranges on it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        yield arguments[0], [r for r in arguments[1:] if isinstance(r, Range)]
    elif typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        for each in arguments:
            if each is not Ellipsis:
                yield from leaves(each)
    else:
        yield hint, []


def numeric(hint):
    return any(kind in (int, float) for kind, _ in leaves(hint))


def hints(build):
    return typing.get_type_hints(build, include_extras=True)


NUMERIC = [
    (what, key)
    for what, build in BUILDS.items()
    for key, hint in hints(build).items()
    if key != "return" and numeric(hint)
]
REQUIRED = {  # values of keywords without a default
    "lr": 1e-3,
    "steps": 5000,
    "scale": 0.5,
    "heads": 2,
    "shape": (1, 8, 8, 3),
    "in_channels": 3,
    "batch_size": 8,
    "path": "x",
    "size": 8,
    "dataset": "mnist",
    "parts": ({"name": "digits", "held_out": 297, "split_seed": 0},),
    "encoders": ({"name": "minilm"},),
}
NUMBER = [-1, 0, 1, 2, 0.5, 10**30, 1e30, math.nan, math.inf]
OTHER = ["three", True, None, [], {}, b"1", 1j]


def given(build, key, value):
    needed = {k: REQUIRED[k] for k in configs.required(build) if k in REQUIRED}
    return {**needed, key: value}


@pytest.mark.parametrize(("what", "key"), NUMERIC)
def test_every_number_states_its_range(what, key):
    for kind, ranges in leaves(hints(BUILDS[what])[key]):
        assert kind not in (int, float) or ranges, (
            f"{key}: give it a type of dit.types, with a Range"
        )


def refusal(function, *args, **kwargs):
    """The message of the UserError that a call raises, or None."""
    try:
        function(*args, **kwargs)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("what", "key"), NUMERIC)
def test_a_silly_value_of_a_number_is_refused_or_has_a_meaning(what, key):
    build = BUILDS[what]
    hint, needed = hints(build)[key], configs.required(build)
    kinds = dict(leaves(hint))
    size = next((len(typing.get_args(a)) for a in parts(hint) if typing.get_origin(a) is tuple), 0)
    tried = [*NUMBER, *OTHER, *edges(hint)]
    tried += [(x,) * size for x in tried if size]
    exercised = []
    for value in tried:
        refused = refusal(configs.checked, build, what, {key: value}, wired=needed)
        if refused is not None:
            assert "\n" not in refused
            assert len(refused) < 400
            continue
        numbers = value if isinstance(value, tuple | list) else (value,)
        for n in numbers:
            assert type(n) in kinds or (type(n) is int and float in kinds)
            assert n is None or isinstance(n, str) or (math.isfinite(n) and abs(n) <= 1e12)
        if value not in exercised:
            exercise(what, build, given(build, key, value))
            exercised.append(value)


def parts(hint):
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else [hint]


def edges(hint):
    for _, ranges in leaves(hint):
        for r in ranges:
            yield from (r.low, r.high)


def exercise(what, build, kwargs):
    """Call it, and what it makes: nothing but numbers and UserErrors may come of it."""
    room = what.split()[0]
    if room in ("data.sources", "models", "objectives", "section", "a", "optimizers"):
        return  # they need data, or cost memory or time in proportion

    def made():
        for x in TRY.get(room, lambda made: ())(configs.call(build, what, **kwargs)):
            assert np.isfinite(np.asarray(x)).all(), (what, kwargs)

    assert "\n" not in (refusal(made) or "")


LINEAR = linear.build()
PROCESS = Process(LINEAR, v.build())


def try_path(path):
    t = jnp.linspace(path.t_min, path.t_max, 11)
    assert 0 <= path.t_min < path.t_max
    yield from (path.alpha(t), path.sigma(t))
    yield path.c_noise(t)[1:]
    assert (np.asarray(path.alpha(t)) >= 0).all()
    assert (np.asarray(path.sigma(t)) >= 0).all()


def try_times(quantile):
    t, _ = draw(jax.random.key(0), jnp.arange(64), LINEAR, quantile)
    assert ((t >= 0) & (t <= 1)).all()
    yield t


def try_schedule(schedule):
    for step in (0, 1, 100, 4999, 5000, 10**6):
        rate = schedule(jnp.asarray(step))
        assert rate >= 0
        yield rate


def try_optimizer(make):
    axes = {"w": ("layers", "embed", "mlp"), "b": ("layers", "mlp")}
    params = {"w": jnp.ones((2, 2, 3)), "b": jnp.ones((2, 3))}
    transform = make(lambda step: 1e-3, axes)
    grads = jax.tree.map(jnp.ones_like, params)
    yield from jax.tree.leaves(transform.update(grads, transform.init(params), params)[0])


DDPM = configs.resolve("diffusion.paths", "ddpm")


def try_grid(grid):
    if refusal(grid, DDPM, 50):  # more than the path has
        return
    times = np.asarray(grid(DDPM if refusal(grid, LINEAR, 50) else LINEAR, 50))
    assert (times[:-1] > 0).all()
    assert (np.diff(times) <= 0).all()
    assert times[-1] == 0
    yield times


TRY = {
    "diffusion.paths": try_path,
    "diffusion.times": try_times,
    "diffusion.weights": lambda weight: [weight(PROCESS, jnp.linspace(0.1, 0.9, 9), jnp.ones(9))],
    "training.schedules": try_schedule,
    "training.optimizers": try_optimizer,
    "sampling.grids": try_grid,
    "codecs": lambda codec: [codec.decode({}, jnp.ones((1, 1, 2, 2, 3)))],
}


@pytest.mark.parametrize("half_life", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("rampup", [None, 1e-12, 1e12])
def test_averages_have_a_rate_at_the_ends_of_the_range(half_life, rampup):
    made = ema.build(half_lives=(half_life,), rampup=rampup)
    for step in (0, 1, 10**9):
        assert 0 <= ema.rate(made.half_lives[0], made.rampup, jnp.asarray(step)) <= 1


def test_the_path_ends_after_it_begins():
    for given in ({"t_min": 0.5, "t_max": 0.5}, {"t_min": 0.9, "t_max": 0.1}):
        for name in ("linear", "cosine"):
            says = r"got a path from t_min=0\.. to t_max=0\..; expected .* 0 <= t_min < t_max"
            with pytest.raises(UserError, match=says):
                configs.resolve("diffusion.paths", name, **given)
    with pytest.raises(UserError, match=r"got a path from t_min=3\.0 to t_max=2\.0"):
        configs.resolve("diffusion.paths", "edm", sigma_min=3.0, sigma_max=2.0)


# --- names ---------------------------------------------------------------------------------------

CHOICES = [(section, name) for section, room in ROOMS.items() for name in configs.names(room)]


def needs(section, name):
    needed = configs.required(configs.builder(ROOMS[section], name))
    return [key for key in needed if key not in WIRED.get(section, ())]


@pytest.mark.parametrize(("section", "name"), CHOICES)
def test_a_new_name_may_be_given_with_its_keywords_in_any_order(section, name):
    values = {f"{section}.{key}": REQUIRED[key] for key in needs(section, name)}
    items = [(f"{section}.name", name), *values.items()]
    for order in itertools.permutations(items):
        config = load_config(DIGITS, dict(order))
        assert config[section].name == name
        assert all(config[section][key.split(".")[1]] == value for key, value in values.items())
    missing = needs(section, name)
    if missing and name != load_config(DIGITS).get(section, {}).get("name"):
        with pytest.raises(UserError, match="the config lacks") as error:
            load_config(DIGITS, {f"{section}.name": name})
        assert all(f"--config.{section}.{key}=..." in str(error.value) for key in missing)


@pytest.mark.parametrize(("section", "name"), CHOICES)
def test_a_keyword_that_a_name_does_not_take_is_refused_with_those_it_does(section, name):
    values = {f"{section}.{key}": REQUIRED[key] for key in needs(section, name)}
    if name == "shifted":
        values[f"{section}.shift"] = 2.0  # or the number of tokens
    overrides = {f"{section}.nonsense": 1, f"{section}.name": name, **values}
    build = configs.builder(ROOMS[section], name)
    if not configs.open_ended(build):
        with pytest.raises(UserError, match=f"unknown config field '{section}.nonsense': "):
            load_config(DIGITS, overrides)
    else:  # it hands on what it does not know
        given = {k: v for k, v in load_config(DIGITS, overrides)[section].items() if k != "name"}
        with pytest.raises(UserError, match="unknown keyword 'nonsense': "):
            configs.call(build, section, **given)


def test_what_is_missing_is_named_at_once():
    with pytest.raises(UserError, match="the config lacks") as error:
        complete({"data": {"name": "folder"}, "model": {"name": "dit"}})
    for key in ("steps", "batch_size", "data.path", "data.size", "path.name", "prediction.name"):
        assert f"--config.{key}=..." in str(error.value)


def test_a_data_set_of_tfds_can_be_named_on_the_command_line():
    for overrides in (
        {"data.name": "tfds:mnist"},
        {"data.dataset": "mnist", "data.name": "tfds"},
    ):
        data = load_config(DIGITS, overrides).data
        assert (data.name, data.dataset) == ("tfds", "mnist")


@pytest.mark.parametrize(
    "key", ["optimizer.lrr", "optimiser.lr", "lr", "warp", "a.b.c", "model.x.y"]
)
def test_an_unknown_field_lists_few(key):
    with pytest.raises(UserError, match=f"unknown config field '{key}': ") as error:
        load_config(DIGITS, {key: 1})
    assert len(str(error.value)) < 400
    assert ("'optimizer.lr'" in str(error.value)) == ("lr" in key)


def test_override_changes_nothing_that_it_is_given():
    config = {"data": {"name": "digits"}, "steps": 1}
    override(config, {"data.held_out": 20, "steps": 2})
    assert config == {"data": {"name": "digits"}, "steps": 1}


def test_a_recipe_takes_what_the_settings_take():
    own = ("every", "frames", "guidance")
    taken = {k: v for k, v in load_config(DIGITS).samples.items() if k not in own}
    assert configs.call(Recipe, "a recipe", **taken).steps == taken["steps"]


def test_a_part_of_a_mixture_has_a_weight_beside_its_own_options_and_nothing_else_has():
    part = {"name": "digits", "held_out": 297, "weight": 2.0}
    flat = load_config(DIGITS).to_dict()
    found = complete({**flat, "data": {"name": "mixture", "parts": (part, {**part, "weight": 1})}})
    assert [each["weight"] for each in found.data.parts] == [2.0, 1]
    assert found.data.parts[0]["split_seed"] == 0
    with pytest.raises(UserError, match="weight"):
        complete({**flat, "data": part})
    parts = ({"name": "digits", "weigth": 2.0},)
    with pytest.raises(UserError, match="weigth"):
        complete({**flat, "data": {"name": "mixture", "parts": parts}})
