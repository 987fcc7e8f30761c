"""From a config to the things it names: the one place that wires the rooms together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dit import config_file, init_from, models
from dit.codecs import Codec
from dit.config import call, resolve
from dit.data import pipeline
from dit.data.pipeline import Batches
from dit.data.source import Source
from dit.diffusion.process import Process
from dit.diffusion.weights import Weight
from dit.init_from import Given
from dit.objectives import LossFn
from dit.objectives.constant import Constant, Moments, best_constant
from dit.scaling import mup
from dit.sections import PLAIN, ROOMS, complete, override, precision
from dit.training.learning import moments
from dit.types import ApplyFn, Key, Params, UserError


def load_config(path: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The completed config of a file (``config_file.read``), with ``{"a.b": value}`` laid over.

    Overriding a section's ``name`` starts that section afresh, with the keywords that the new one
    takes too; its own may be given beside it, in any order. Raises UserError for what is not there.
    """
    overrides = overrides or {}
    config = config_file.plain(config_file.overlay(config_file.read(path), overrides))
    if not isinstance(config, dict):
        raise UserError(f"get_config() of {path} gave {config!r}; expected a ConfigDict")
    return complete(override(config, overrides))


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

    def initial(self, target: Params) -> Given:
        """What a new run begins with, but for random parameters; shaped and placed as ``target``."""
        return init_from.read(self.settings("init_from"), target, self.model, self.shape)

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
    loss = section("objective", times=times, weight=weight, patch=models.cell(model))
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
