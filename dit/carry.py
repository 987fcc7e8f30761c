"""Weights on their way between files of a foreign format and workdirs, one parameter at a time."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from dit import models, rng, storage
from dit.config import fingerprint, resolve
from dit.experiment import Experiment, build
from dit.interop import folder, mapping, views, writing
from dit.interop import lora as layouts
from dit.interop.mapping import Format, State
from dit.parallel.fingerprints import fingerprint_of, fingerprints
from dit.parallel.frozen import identities, without
from dit.parallel.rules import is_axes
from dit.training import lora as low_rank
from dit.training import slicewise
from dit.training.checkpoint import read_meta, restore_params
from dit.training.weights import Later, save_params
from dit.training.workdir import plain
from dit.types import UserError

Parts = Callable[[str], Iterable[Any]]  # the parameter of a name, in parts along its first axis


def flat(tree: Any) -> dict[str, Any]:
    """A tree of parameters by name."""
    return flatten_dict(tree, sep="/")


def save(workdir: storage.Place, experiment: Experiment, parts: Parts) -> int:
    """Make a workdir of an experiment and its parameters; how many numbers they are."""
    abstract = jax.eval_shape(experiment.init, rng.root(0))
    later = {
        name: Later(x.shape, np.dtype(x.dtype), functools.partial(parts, name))
        for name, x in flat(abstract).items()
    }
    save_params(
        workdir,
        plain(experiment.config),
        later,
        example=experiment.example,
        frozen=fingerprints_of(experiment),
    )
    return models.count_params(abstract)


def fingerprints_of(experiment: Experiment) -> dict[str, str]:
    """Those of the frozen weights; of a LoRA's network the one that its checkpoint keeps, if any."""
    others = {name: w for name, w in experiment.frozen.items() if name != "base"}
    found = identities(others, None)
    if experiment.base is not None:
        bits = fingerprints({"scale": np.float32(experiment.lora.scale)})
        bits |= {f"network/{name}": x for name, x in _bits_of_base(experiment).items()}
        found["base"] = fingerprint(bits)
        if experiment.base.expected not in (None, found["base"]):
            raise UserError(
                f"{experiment.base.where} are not those that this run was trained with: got "
                f"{found['base']}, expected {experiment.base.expected}; put the same files there again"
            )
    return found


def _bits_of_base(experiment: Experiment) -> dict[str, str]:
    """The fingerprint of each parameter of the network of a LoRA, which is read if it lies in a file."""
    source, names = experiment.settings("init_from"), flat(experiment.base.abstract["network"])
    if source.format is None:
        return slicewise.saved(source.path, source.which, source.step)
    read = of_base(experiment)
    return {name: fingerprint_of(read(name)) for name in names}


def of_state(form: Format, state: State, experiment: Experiment) -> Parts:
    """The parameters in a state; UserError, by name, unless the whole of it fits."""
    model, shape = experiment.model, experiment.shape
    entries, own = form.opened(state, model, shape)
    abstract = models.abstract(model, shape)
    mapping.check_shapes(own, entries, abstract)
    leaves, table = flat(abstract), mapping.by_path(entries)
    return lambda name: mapping.parts(own, table[tuple(name.split("/"))], leaves[name])


def of_run(experiment: Experiment, workdir: str, which: str | None, step: int | None) -> Parts:
    """The parameters of the network of a run; of a LoRA's, with its maps added to the frozen ones."""
    if experiment.lora is None:
        return _opened(experiment, workdir, which, step)
    pairs, base = pairs_of(experiment, workdir, which, step), of_base(experiment)

    def parts(name: str) -> Iterator[Any]:
        first = 0
        for part in base(name):
            yield low_rank.merge(experiment.lora, name, jax.device_put(part), pairs, first)
            first += len(part) if part.ndim else 0

    return parts


def of_base(experiment: Experiment) -> Parts:
    """The parameters of the frozen network of a LoRA."""
    source = experiment.settings("init_from")
    if source.format is None:
        return _opened(experiment, source.path, source.which, source.step)
    state = folder.opened(source.path, source.which or "ema")[0]
    return of_state(resolve("interop", source.format), state, experiment)


def _opened(experiment: Experiment, workdir: str, which: str | None, step: int | None) -> Parts:
    """The parameters of a checkpoint, those of stacked layers in parts."""
    model, shape = experiment.model, experiment.shape
    axes = flatten_dict(models.logical_axes(model, shape), sep="/", is_leaf=lambda _, x: is_axes(x))
    stacked = {name for name, names in axes.items() if names[:1] == ("layers",)}
    abstract = flat(models.abstract(model, shape))
    return slicewise.opened(workdir, abstract, stacked, which=which, step=step)


def pairs_of(experiment: Experiment, workdir: str, which: str | None, step: int | None) -> Any:
    """What a LoRA run trained."""
    abstract = jax.eval_shape(experiment.init, rng.root(0))
    return restore_params(workdir, abstract, which=which, step=step).params


def merged(experiment: Experiment) -> Experiment:
    """The experiment of a LoRA run with its maps added to the network: as if that had been trained."""
    config = plain(experiment.config)
    for section in ("lora", "init_from"):
        del config[section]
    config["mesh"]["whole"] = without("base", config["mesh"]["whole"])
    frozen = {n: w.expected for n, w in experiment.frozen.items() if w.expected is not None}
    return build(config, experiment.example, frozen)


def with_lora(
    form: Format, state: State, header: Mapping[str, str], base: str, which: str | None
) -> tuple[Experiment, Parts, tuple[str, ...]]:
    """The experiment of a LoRA in a state, of the network of the run in ``base``, and its maps.

    And the names of what is of text encoders.
    """
    meta = read_meta(base)
    below = build(meta["config"], meta.get("example"), meta.get("frozen"))
    if below.lora is not None:
        raise UserError(
            f"the run in {base} trained a LoRA itself: merge it, and give what that makes"
        )
    found = layouts.read(state, header, names_of(form, below.model, below.shape))
    config = plain(below.config)
    config["lora"] = {"rank": found.rank, "alpha": found.alpha, "targets": list(found.targets)}
    config["init_from"] = {"path": base, "which": which, "step": meta["step"]}
    config["optimizer"] = {k: v for k, v in config["optimizer"].items() if not k.startswith("mup_")}
    experiment = build(config, below.example, meta.get("frozen"))
    shapes = flat(jax.eval_shape(experiment.init, rng.root(0)))
    return experiment, lambda name: [found.pairs[name].reshape(shapes[name].shape)], found.beside


def write(
    form: Format, experiment: Experiment, read: Parts, out: str, **how: Any
) -> list[pathlib.Path]:
    """Write the network of a run in a format; ``how``: as of ``writing.write``. The files."""
    model, shape = experiment.model, experiment.shape
    form.check(model)
    entries, abstract = form.table(model, ()), models.abstract(model, shape)
    fixed, parts = form.fixed(model, shape), form.views(model)
    layout = {**fixed, **views.joined_layout(mapping.layout(entries, abstract), parts)}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, group in mapping.by_path(entries).items():
            yield from mapping.tensors(read("/".join(path)), group, abstract)

    shapes = {name: x.shape for name, x in layout.items()}
    found = itertools.chain(views.regions(fixed.items(), {}), views.regions(tensors(), parts))
    return writing.write(out, form.stem, shapes, found, **how)


def names_of(form: Format, model: Any, shape: tuple[int, ...]) -> layouts.Names:
    """What the maps of a LoRA of this model are called in a format, and how large they are."""
    form.check(model)
    abstract = models.abstract(model, shape)
    entries, parts = form.table(model, ()), form.views(model)
    layout = views.joined_layout(mapping.layout(entries, abstract), parts)
    known = low_rank.kernels(abstract, models.logical_axes(model, shape))
    sizes = {name.rpartition("/")[0]: pair.size for name, pair in known.items()}
    shapes = {name: x.shape for name, x in layout.items()}
    return layouts.Names(entries, parts, shapes, sizes, form.part)


def write_lora(
    form: Format, experiment: Experiment, pairs: Any, out: str, kohya: bool = False, **how: Any
) -> list[pathlib.Path]:
    """Write the maps of a LoRA alone, under a format's names, as PEFT and diffusers lay them out.

    ``kohya``: as kohya does.
    """
    lora, names = experiment.lora, names_of(form, experiment.model, experiment.shape)
    state, told = layouts.to_state(flat(pairs), names), {}
    if kohya:
        state = layouts.kohya(state, lora.scale)
    elif form.part == layouts.ORIGINAL:
        state = layouts.scaled(state, lora.scale)
    else:
        told = layouts.metadata(lora.rank, lora.rank * lora.scale, state, form.part)
    shapes = {name: x.shape for name, x in state.items()}
    whole = views.regions(state.items(), {})
    return writing.write(out, layouts.STEM, shapes, whole, metadata=told, **how)
