"""From a config to the things it names: the one place that wires the rooms together."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dit import config_file, init_from, models, objectives
from dit.codecs import Codec
from dit.concat import Concat
from dit.config import builder, call, keywords, resolve
from dit.data import captions
from dit.data.pipeline import Batches
from dit.data.source import Source, bucket_sizes, bucket_weights
from dit.diffusion.process import Process
from dit.diffusion.tasks import grid_of, mix
from dit.diffusion.weights import check_finite
from dit.init_from import Given
from dit.objectives import LossFn
from dit.objectives.constant import Constant, Moments, best_constant
from dit.parallel.frozen import expecting, held, place
from dit.sections import PLAIN, ROOMS, complete, diffuses, override, precision
from dit.text import FrozenText, TextEncoder, check_made_by, is_told
from dit.text.network import TextConditioned
from dit.training.learning import moments
from dit.training.lora import Lora
from dit.training.step import Show, Tell, unshown, untold
from dit.training.transfer import of_section, scale_init
from dit.training.workdir import of_today
from dit.types import ApplyFn, Key, Params, UserError, Weights, masks
from dit.wired import (
    batches_of,
    check_concat,
    check_packing,
    wired_to_codec,
    wired_to_model,
    wired_to_text,
)


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
    """What a config stands for. ``shapes``: of an encoded example of each bucket, ``(f, h, w, c)``.

    ``best(moments)``: what the best constant prediction scores on data with these moments. It is None,
    and so is ``process``, where the objective is not about diffusion: an autoencoder's.
    ``lora``: where low-rank maps are trained beside a frozen network, ``base``; else None, as it is.
    ``example`` says what of the data the model depends on, as a checkpoint keeps it: the ``shape`` of
    an example and the number of ``classes``, None for unlabelled data; the ``shapes`` of all buckets,
    where there are several; and what made stored embeddings of ``text``, where that is known.
    ``text``: the encoder of a model that reads text, a part of it or frozen. ``concat``: what makes
    known channels of the data; None: they have none, or have them themselves.
    """

    config: ConfigDict
    example: Mapping[str, Any]
    codec: Codec
    text: TextEncoder | FrozenText | None
    model: Any
    process: Process | None
    loss: LossFn
    best: Callable[[Moments], Constant | None] | None
    shapes: tuple[tuple[int, int, int, int], ...]
    lora: Lora | None = None
    base: Weights | None = None
    concat: Concat | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The first bucket's: parameters are made for it, and samples drawn unless told otherwise."""
        return self.shapes[0]

    @property
    def num_classes(self) -> int | None:
        """The number of class labels, or None for unlabelled data."""
        return self.example["classes"]

    @functools.cached_property
    def source(self) -> Source:
        """The data, which must be there now; UserError if they are other data than the model's."""
        source = source_of(self.config, self.text)
        if _example(source) != dict(self.example):
            raise UserError(
                f"the data have changed since the model was trained: got {_example(source)}; expected "
                f"{dict(self.example)}"
            )
        return source

    @functools.cached_property
    def conditions(self) -> tuple[str, ...]:
        """Fields of ``Cond`` that the data have beside labels; ``tokens`` for a frozen encoder's."""
        made = {"label"} if self.concat is None else {"label", "concat"}
        names = [name for name in models.conditions(self.model, self.shape) if name not in made]
        if isinstance(self.text, FrozenText):
            names = ["tokens", *(name for name in names if name not in self.text.gives)]
        return tuple(names)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Those conditions that are not text, and are given as they are."""
        return tuple(name for name in self.conditions if self.text is None or name != "tokens")

    def check_conditions(self) -> None:
        """Raise UserError where the data do not have what the model is conditioned on."""
        if not self.conditions:
            return
        example = self.source.train[0]
        missing = [name for name in self.conditions if name not in example]
        if is_told(self.text, example):
            missing = [name for name in missing if name != "tokens"]
        if missing:
            raise UserError(
                f"the model takes {', '.join(missing)}, and the examples of the data have only "
                f"{', '.join(example)}: take other data, or another model"
            )

    def captions_of(self, split: str, num: int) -> tuple[str, ...]:
        """Of the first ``num`` examples, those whose conditions ``conditions_of`` has."""
        split = getattr(self.source, split)
        return tuple(captions.caption_of(split, i % len(split)) for i in range(num))

    def conditions_of(self, split: str, num: int) -> dict[str, np.ndarray]:
        """Those of the first ``num`` examples, with their labels; empty for labels alone.

        ``split``: ``held_out`` or ``train``. Where there are fewer, they repeat. Raises UserError where
        there are none.
        """
        if not self.conditions:
            return {}
        split = getattr(self.source, split)
        if len(split) == 0:
            raise UserError(
                f"there are no {split} examples of shape {self.source.shape}, whose conditions "
                "samples could be given: hold some out, or set samples.num=0"
            )
        rows = [split[i % len(split)] for i in range(num)]
        names = {*self.conditions, *masks(self.conditions), "label"} & rows[0].keys()
        return {name: np.stack([row[name] for row in rows]) for name in sorted(names)}

    @functools.cached_property
    def context_len(self) -> int:
        """Tokens of an example's context or text; 0 for a model that takes none."""
        if isinstance(self.text, FrozenText):
            return self.text.context_len
        names = [name for name in ("context", "tokens") if name in self.conditions]
        return len(self.source.train[0][names[0]]) if names else 0

    @property
    def level(self) -> str:
        """What has a noise level of its own in training: a ``sample``, ``frame`` or ``token``.

        Tokens do where some are known, frames where whole ones are; ``forced``: after clean frames.
        """
        objective = self.config.objective
        level = objective.get("level", "forced" if "block" in objective else "sample")
        mixed = mix(objective.get("tasks", ()))
        if mixed is None or level == "token":
            return level
        return "frame" if mixed.whole else "token"

    @property
    def remat(self) -> str | None:
        """The network's remat policy; None for a network that has no such choice."""
        return self.config.model.get("remat")

    @property
    def apply_fn(self) -> ApplyFn:
        """``apply_fn(params, x, t, cond) -> out`` of the model."""
        return models.apply_fn(self.model)

    def init(self, key: Key) -> Params:
        """What is trained, at random, in the optimizer's parametrisation; under ``eval_shape`` too."""
        if self.lora is not None:
            return self.lora.init(key)
        params = self.init_of(self.model, key)
        return scale_init(of_section(self.config.optimizer.to_dict()), self.axes, params)

    def init_of(self, network: models.Network, key: Key) -> Params:
        """Random parameters of a network that sees the same data as the model."""
        return models.init(network, key, self.shape)

    def axes_of(self, network: models.Network) -> Any:
        """The logical axis names of these parameters."""
        return models.logical_axes(network, self.shape)

    def initial(self, target: Params) -> Given:
        """The parameters that a new run takes from elsewhere, shaped and placed as ``target``."""
        if self.lora is not None:
            return init_from.NOTHING  # they are the frozen network's
        return init_from.read(self.settings("init_from"), target, self.model, self.shape)

    @property
    def tell(self) -> Tell:
        """``tell(params, batch)``: the batch with what a frozen encoder gives in place of tokens."""
        return self.text.told if isinstance(self.text, FrozenText) else untold

    @property
    def show(self) -> Show:
        """``show(params, batch, key, ids)``: the channels that the section concat makes of the data."""
        if self.concat is None:
            return unshown
        return functools.partial(self.concat.drawn, self.codec, self.model.cell())

    @property
    def parts(self) -> tuple[Any, ...]:
        """What ``training.step.objective`` takes beside a loss."""
        return self.apply_fn, self.process, self.codec.encode, self.tell, self.show

    @property
    def frozen(self) -> dict[str, Weights]:
        """The weights that nothing trains, by name: a sampler's, and what the objective needs."""
        return {**self.sampled_with, **objectives.frozen(self.loss)}

    @property
    def sampled_with(self) -> dict[str, Weights]:
        """What a sampler takes beside the model: codec, text encoder, and the network under LoRA."""
        text = {"text": self.text.weights} if isinstance(self.text, FrozenText) else {}
        base = {} if self.base is None else {"base": self.base}
        return {**self.codec.frozen, **text, **base}

    @property
    def text_flops(self) -> int:
        """FLOPs of one text in a frozen encoder; 0 without one."""
        return 2 * sum(self.text.macs.values()) if isinstance(self.text, FrozenText) else 0

    @functools.cached_property
    def flops_beside(self) -> int:
        """FLOPs of training on one example beside the network's: none where the data hold embeddings."""
        told = self.text_flops and is_told(self.text, self.source.train[0])
        return 0 if told else self.text_flops

    @property
    def axes(self) -> Any:
        """The logical axis names of what is trained, in a tree like it."""
        return self.axes_of(self.model) if self.lora is None else self.lora.axes

    def batches(self) -> Batches:
        """The stream of training data, from its first batch."""
        return batches_of(self.config, self.source, self.model.cell())

    def constant(self, batches: Batches) -> Constant | None:
        """What the best constant prediction scores on these training data, if that is defined."""
        if self.best is None:
            return None
        weights = place(self.codec.frozen, None)
        return self.best(moments(batches.unpacked, self.codec.encode, **weights))

    def bucket(self, i: int) -> Experiment:
        """The same experiment on the data of one bucket."""
        one = dataclasses.replace(self, shapes=(self.shapes[i],))
        one.__dict__["source"] = self.source.bucket(i)
        return one

    def shaped(self, shape: tuple[int, int, int, int]) -> Experiment:
        """The same experiment for examples of another ``shape``, before they are encoded.

        Raises UserError if the network, or its parameters, do not fit it.
        """
        other = dataclasses.replace(self, shapes=(tuple(self.codec.encoded_shape(shape)),))
        ours, theirs = (models.abstract(each.model, each.shape) for each in (self, other))
        if ours != theirs:
            raise UserError(
                f"got a shape of {shape}, for which this network has other parameters than it was "
                f"trained with, for {self.example['shape']}"
            )
        return other

    @property
    def packed(self) -> bool:
        """Whether examples of all shapes are packed into rows."""
        return self.config.packing.tokens is not None

    @property
    def used(self) -> list[int]:
        """The buckets that have training examples."""
        return [i for i, size in enumerate(bucket_sizes(self.source.train)) if size]

    @property
    def largest(self) -> int:
        """The bucket with the largest training examples."""
        return max(self.used, key=lambda i: math.prod(self.shapes[i]))

    @property
    def shares(self) -> list[float]:
        """How much of the training examples, as they are seen, each bucket has."""
        weights = bucket_weights(self.source.train)
        return [weight / sum(weights) for weight in weights]

    def mean(self, value: Callable[[tuple[int, int, int, int]], float]) -> float:
        """``value(shape)``, averaged over the training examples."""
        return sum(n * value(s) for n, s in zip(self.shares, self.shapes, strict=True))

    def settings(self, section: str) -> Any:
        """A section without a name, as the value that ``PLAIN`` makes of it."""
        return call(PLAIN[section], f"section {section!r}", **self.config[section].to_dict())


def build(
    config: Mapping[str, Any] | ConfigDict,
    example: Mapping[str, Any] | None = None,
    frozen: Mapping[str, str] | None = None,
) -> Experiment:
    """Build everything that a config names; UserError for whatever does not fit together.

    ``example``: that of a run, from its checkpoint. Without it the data are looked at; with it they
    need not be there. ``frozen``: the fingerprints that the run's frozen weights must have; of a new
    run, the codec's are those that its latents were made with, and the text encoders' those that its
    stored embeddings were made with.
    """
    config = complete(config if example is None else of_today(config))
    section = functools.partial(_section, config)
    text = section("text", **wired_to_text(config)) if "text" in config else None
    source = None
    if example is None:
        source = source_of(config, text)
        example = _example(source)
    if frozen is None:
        frozen = {"codec": None if source is None else source.codec}
    codec = expecting(section("codec", **wired_to_codec(config)), frozen.get("codec"))
    if isinstance(text, FrozenText):
        made_by = example.get("text")
        check_made_by(text, made_by)
        text = expecting(text, frozen.get("text", None if made_by is None else made_by["weights"]))
    found = example.get("shapes", [example["shape"]])
    shapes = tuple(tuple(codec.encoded_shape(tuple(shape))) for shape in found)
    concat = section("concat") if "concat" in config else None
    about = config, shapes[0][-1], example["classes"], text, concat
    model = section("model", **wired_to_model(*about))
    model = TextConditioned(text, model) if isinstance(text, TextEncoder) else model
    check_packing(config, codec, model)
    check_concat(config, concat, codec, model, shapes)
    process = best = None
    wired = {"model": model, "dtype": precision(**config.precision), "patch": model.cell()}
    if diffuses(config.objective.name):
        process = Process(section("path"), section("prediction"))
        wired["times"], wired["weight"] = section("times"), section("weight")
        check_finite(wired["weight"], process, config.weight.name)
        if (mixed := mix(config.objective.get("tasks", ()))) is not None:
            for shape in shapes:
                mixed.fitting(grid_of(shape, model.cell()))
        best = functools.partial(best_constant, process, wired["times"], wired["weight"])
    takes = keywords(builder(ROOMS["objective"], config.objective.name))
    loss = section("objective", **{k: v for k, v in wired.items() if k in takes})
    told = (call(PLAIN[k], k, **config[k].to_dict()) for k in ("lora", "init_from"))
    lora, base = init_from.beside(*told, model, shapes[0], (frozen or {}).get("base"))
    if lora is not None and of_section(config.optimizer.to_dict()):
        raise UserError(
            "got lora.rank and optimizer.mup_base_...; muP has no rule for LoRA: give one"
        )
    codec, text, base = held(config.mesh.whole, codec=codec, text=text, base=base)
    parts = config, example, codec, text, model, process, loss, best, shapes, lora, base, concat
    experiment = Experiment(*parts)
    if source is not None:
        experiment.__dict__["source"] = source  # has just been built: not to be built again
        experiment.check_conditions()
    return experiment


def source_of(config: ConfigDict, text: TextEncoder | FrozenText | None) -> Source:
    """The data, with tokens in place of captions for a model that reads them.

    Those that hold what a frozen encoder gives stay as they are.
    """
    source = _section(config, "data")
    told = len(source.train) and is_told(text, source.train[0])
    return source if text is None or told else captions.tokenized(source, text.tokenizer())


def _section(config: ConfigDict, name: str, **wired) -> Any:
    """What a section with a name stands for."""
    given = {k: v for k, v in config[name].to_dict().items() if k not in wired}
    return resolve(ROOMS[name], **given, **wired)


def _example(source: Source) -> dict[str, Any]:
    """What of its data a model depends on, as JSON keeps it."""
    found = {"shape": list(source.shape), "classes": source.num_classes}
    several = {"shapes": [list(shape) for shape in source.shapes]} if len(source.shapes) > 1 else {}
    return found | several | ({} if source.text is None else {"text": dict(source.text)})
