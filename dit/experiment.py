"""From a config to the things it names: the one place that wires the rooms together.

A config is an ``ml_collections.ConfigDict``. A section with a ``name`` is resolved in the room that
``ROOMS`` gives; the others hold the keywords of ``PLAIN``. ``complete`` fills in every default, so
that the config kept beside a checkpoint says all of what was run, and every keyword can be set.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dit import models
from dit.codecs import Codec
from dit.config import builder, call, check_finite, resolve, suggest
from dit.data import pipeline
from dit.data.pipeline import Batches
from dit.data.source import Source
from dit.diffusion.process import Process
from dit.diffusion.weights import Weight
from dit.objectives import LossFn
from dit.objectives.constant import Constant, Moments, best_constant
from dit.scaling import mup
from dit.training import ema
from dit.training.learning import moments
from dit.types import ApplyFn, Key, Params, UserError

ROOMS = {
    "data": "data.sources",
    "codec": "codecs",
    "model": "models",
    "path": "diffusion.paths",
    "prediction": "diffusion.predictions",
    "times": "diffusion.times",
    "weight": "diffusion.weights",
    "objective": "objectives",
    "optimizer": "training.optimizers",
    "schedule": "training.schedules",
}
DEFAULT_NAMES = {
    "codec": "pixel",
    "times": "uniform",
    "weight": "none",
    "objective": "denoise",
    "optimizer": "adamw",
    "schedule": "constant",
}
WIRED = {  # keywords that the experiment gives itself, from other parts of the config
    "model": ("in_channels", "num_classes", "dtype"),
    "objective": ("times", "weight"),
    "schedule": ("lr", "steps"),
}
SKIP = 10  # batches of a run that may be passed over, as their loss or gradient is not finite
PRECISIONS = ("auto", "float32", "bfloat16")


def precision(*, compute: str = "auto") -> str:
    """The dtype of the network's matrix products; parameters, norms and the loss stay float32.

    ``auto``: bfloat16 on accelerators, float32 on CPUs, which are slower in bfloat16.
    """
    if compute not in PRECISIONS:
        raise UserError(f"got precision.compute={compute!r}: {suggest(compute, list(PRECISIONS))}")
    if compute == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return compute


def mesh_sizes(
    *,
    preset: str = "dp",
    data: int | None = None,
    fsdp: int | None = None,
    context: int | None = None,
    tensor: int | None = None,
) -> dict[str, int | str | None]:
    """Devices along each mesh axis (-1: all that are left; None: as in the ``preset``)."""
    return {"preset": preset, "data": data, "fsdp": fsdp, "context": context, "tensor": tensor}


def _at_least_one(section: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"got {section}.{name}={value}; expected a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Save ``every`` so many steps (and at the end); ``keep`` the latest ones."""

    every: int = 1000
    keep: int = 3

    def __post_init__(self):
        _at_least_one("checkpoint", every=self.every, keep=self.keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Log ``every`` so many steps; TensorBoard always, Weights & Biases where ``wandb`` is true."""

    every: int = 50
    wandb: bool = False

    def __post_init__(self):
        _at_least_one("log", every=self.every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How samples are drawn. ``solver``, ``grid`` and ``guidance`` as on the command line.

    In training: a grid of ``num``, cycling through the classes, ``every`` so many steps and at the end.
    """

    every: int = 1000
    num: int = 50
    solver: str = "heun"
    grid: str = "uniform"
    steps: int = 50
    guidance: str | float = 1.0
    seed: int = 0
    batch: int = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """``workers`` processes that read data (0: threads of this one), ``prefetch`` batches ahead."""

    workers: int = 0
    prefetch: int = 2


PLAIN = {
    "loader": LoaderSettings,
    "precision": precision,
    "mesh": mesh_sizes,
    "ema": ema.build,
    "checkpoint": CheckpointSettings,
    "log": LogSettings,
    "samples": SampleSettings,
}
NUMBERS = {"seed": 0, "steps": 1, "batch_size": 1}  # plain whole numbers, and the least of each


def load_config(path: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The completed config of a Python file with ``get_config()``, with ``{"a.b": value}`` laid over.

    The file is run, so it must be trusted; it may import a config beside it. Overriding a section's
    ``name`` starts that section afresh, with the keywords that the new one takes too. Raises
    UserError for what is not there.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"no config file {path!r}; expected the path of a Python file, configs/...")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"cannot read {path!r} as a config; expected a Python file, name.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # a config may start from its neighbour
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    if not hasattr(module, "get_config"):
        raise UserError(
            f"{path} has no get_config(); expected a function that returns a ConfigDict"
        )
    config = module.get_config()
    names_first = sorted((overrides or {}).items(), key=lambda kv: not kv[0].endswith(".name"))
    config = complete(_rename(config, [kv for kv in names_first if kv[0].endswith(".name")]))
    for key, value in names_first:
        _override(config, key, value)
    return complete(config)


def _rename(config: ConfigDict, names: list[tuple[str, Any]]) -> ConfigDict:
    for key, name in names:
        section = key.removesuffix(".name")
        if section not in ROOMS or config.get(section, {}).get("name") == name:
            continue
        if not isinstance(name, str):
            raise UserError(f"got {key}={name!r}; expected a name, as in configs/digits.py")
        accepted = {*_defaults(section, name), *_required(section, name)}
        kept = {k: v for k, v in config.get(section, {}).items() if k in accepted}
        config[section] = ConfigDict({**kept, "name": name})
    return config


def _override(config: ConfigDict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or last not in node:
        known = list(_flatten(config))
        raise UserError(f"unknown config field {key!r}: {suggest(key, known)}")
    if isinstance(node[last], ConfigDict):
        raise UserError(
            f"config.{key} is a section; set one of its fields: {', '.join(node[last])}"
        )
    with node.ignore_type():
        node[last] = value


def _flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> list[str]:
    out = []
    for key, value in config.items():
        nested = isinstance(value, Mapping | ConfigDict)
        out += _flatten(value, f"{prefix}{key}.") if nested else [prefix + key]
    return out


def complete(config: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """``config`` with every default filled in; UserError for unknown sections and fields.

    Every number must be finite, and the whole-number fields at least what ``NUMBERS`` says.
    """
    known = [*NUMBERS, *ROOMS, *PLAIN]
    for section in config:
        if section not in known:
            raise UserError(f"unknown config section {section!r}: {suggest(section, known)}")
    out: dict[str, Any] = {}
    for name, least in NUMBERS.items():
        value = config.get(name, 0 if name == "seed" else None)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"got {name}={value!r}; expected a whole number of at least {least}")
        out[name] = value
    for section in ROOMS:
        given = dict(config.get(section, {}))
        name = given.get("name", DEFAULT_NAMES.get(section))
        if name is None:
            raise UserError(f"the config has no section {section!r}; expected {{'name': ...}}")
        if section == "data" and name.startswith("tfds:"):
            name, given["dataset"] = name.split(":", 1)
        given.pop("name", None)
        for key in WIRED.get(section, ()):
            if key in given:
                raise UserError(f"got config.{section}.{key}; it follows from other sections")
        out[section] = {"name": name, **_defaults(section, name), **given}
    for section, build in PLAIN.items():
        given = dict(config.get(section, {}))
        call(build, f"section {section!r}", **given)
        out[section] = {**_signature_defaults(build), **given}
    check_finite(ConfigDict(out).to_dict(), "config")
    return ConfigDict(out)


def _defaults(section: str, name: str) -> dict[str, Any]:
    """The defaults of a section, but for the keywords that the experiment gives itself."""
    common = (
        {"lr": 1e-4, "clip": None, "accumulate": 1, "skip": SKIP} if section == "optimizer" else {}
    )
    own = _signature_defaults(builder(ROOMS[section], name))
    return {k: v for k, v in {**common, **own}.items() if k not in WIRED.get(section, ())}


def _required(section: str, name: str) -> list[str]:
    parameters = inspect.signature(builder(ROOMS[section], name)).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]


def _signature_defaults(build: Any) -> dict[str, Any]:
    parameters = inspect.signature(build).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not p.empty}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config stands for. ``shape`` is that of one encoded example, ``(f, h, w, c)``.

    ``best(moments)``: what the best constant prediction scores on data with these moments.
    ``example`` says what of the data the model depends on, as a checkpoint keeps it: the ``shape`` of
    an example and the number of ``classes``, None for unlabelled data.
    """

    config: ConfigDict
    example: Mapping[str, Any]
    codec: Codec
    model: Any
    process: Process
    loss: LossFn
    best: Callable[[Moments], Constant | None]
    shape: tuple[int, int, int, int]

    @property
    def num_classes(self) -> int | None:
        """The number of class labels, or None for unlabelled data."""
        return self.example["classes"]

    @functools.cached_property
    def source(self) -> Source:
        """The data, which must be there now; UserError if they are other data than the model's."""
        source = _section(self.config, "data")
        if _example(source) != dict(self.example):
            raise UserError(
                f"the data have changed since the model was trained: got {_example(source)}; expected "
                f"{dict(self.example)}"
            )
        return source

    @property
    def apply_fn(self) -> ApplyFn:
        """``apply_fn(params, x, t, cond) -> out`` of the model."""
        return models.apply_fn(self.model)

    def init(self, key: Key) -> Params:
        """Random parameters, in the optimizer's parametrisation; works under ``jax.eval_shape``."""
        return mup.init(self.model, key, self.shape, self.config.optimizer.to_dict())

    @property
    def axes(self) -> Any:
        """The logical axis names of the parameters, in a tree like theirs."""
        return models.logical_axes(self.model, self.shape)

    def batches(self) -> Batches:
        """The stream of training data, from its first batch."""
        return pipeline.batches(
            self.source.train,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            **self.config.loader,
        )

    def constant(self, batches: Batches) -> Constant | None:
        """What the best constant prediction scores on these training data."""
        return self.best(moments(batches, self.codec.encode))

    def settings(self, section: str) -> Any:
        """A section without a name, as the value that ``PLAIN`` makes of it."""
        return call(PLAIN[section], f"section {section!r}", **self.config[section].to_dict())


def build(
    config: Mapping[str, Any] | ConfigDict, example: Mapping[str, Any] | None = None
) -> Experiment:
    """Build everything that a config names; UserError for whatever does not fit together.

    ``example``: that of a run, from its checkpoint. Without it the data are looked at; with it they
    need not be there.
    """
    config = complete(config)
    section = functools.partial(_section, config)
    source = None
    if example is None:
        source = section("data")
        example = _example(source)
    codec = section("codec")
    shape = tuple(codec.shape(tuple(example["shape"])))
    process = Process(section("path"), section("prediction"))
    weight = section("weight")
    check_weight(weight, process, config.weight.name)
    model = section(
        "model",
        in_channels=shape[-1],
        num_classes=example["classes"],
        dtype=precision(**config.precision),
    )
    times = section("times")
    loss = section("objective", times=times, weight=weight)
    best = functools.partial(best_constant, process, times, weight)
    made = Experiment(config, example, codec, model, process, loss, best, shape)
    if source is not None:
        made.__dict__["source"] = source  # which has just been made: not to be made again
    return made


def _section(config: ConfigDict, name: str, **wired) -> Any:
    """What a section with a name stands for."""
    given = {k: v for k, v in config[name].to_dict().items() if k not in wired}
    return resolve(ROOMS[name], **given, **wired)


def _example(source: Source) -> dict[str, Any]:
    """What of its data a model depends on, as JSON keeps it."""
    return {"shape": list(source.shape), "classes": source.num_classes}


def check_weight(weight: Weight, process: Process, name: str) -> None:
    """Raise UserError where a loss weight is not finite in ``[t_min, t_max]``."""
    t = jnp.linspace(process.path.t_min, process.path.t_max, 1001)
    bad = ~np.isfinite(np.asarray(weight(process, t, jnp.ones_like(t))))
    if bad.any():
        raise UserError(
            f"loss weight {name!r} is infinite at t = {float(t[bad.argmax()]):.4g} with prediction "
            f"{process.prediction.name!r}; set path.t_min above 0, or take another weight"
        )
