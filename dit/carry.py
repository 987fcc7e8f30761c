"""Weights on their way between files of a foreign format and workdirs, one parameter at a time."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dit import init_from, models, rng, storage
from dit.config import fingerprint
from dit.experiment import Experiment, build
from dit.interop import lora as layouts
from dit.interop import mapping, views, writing
from dit.interop.mapping import Format, State
from dit.parallel.fingerprints import fingerprints
from dit.parallel.frozen import identities
from dit.training import lora as low_rank
from dit.training.checkpoint import read_meta, restore_params
from dit.training.weights import Later, save_params
from dit.training.workdir import plain
from dit.types import UserError

Read = Callable[[str], Any]  # the parameter of a name
Parts = Callable[[str], Iterable[Any]]  # the same in parts along its first axis


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
    """Those of the frozen weights; of the network of a LoRA, read one parameter at a time."""
    others = {name: w for name, w in experiment.frozen.items() if name != "base"}
    found = identities(others, None)
    if experiment.base is not None:
        read = of_base(experiment)
        bits = fingerprints({"scale": np.float32(experiment.lora.scale)})
        for name in flat(experiment.base.abstract["network"]):
            bits |= fingerprints({"network": unflatten_dict({name: read(name)}, sep="/")})
        found["base"] = fingerprint(bits)
        if experiment.base.expected not in (None, found["base"]):
            raise UserError(
                f"{experiment.base.where} are not those that this run was trained with: got "
                f"{found['base']}, expected {experiment.base.expected}; put the same files there again"
            )
    return found


def of_state(form: Format, state: State, experiment: Experiment) -> Parts:
    """The parameters in a state; UserError, by name, unless the whole of it fits."""
    model, shape = experiment.model, experiment.shape
    entries, own = form.opened(state, model, shape)
    abstract = models.abstract(model, shape)
    mapping.check_shapes(own, entries, abstract)
    leaves, table = flat(abstract), mapping.by_path(entries)
    return lambda name: mapping.parts(own, table[tuple(name.split("/"))], leaves[name])


def of_run(experiment: Experiment, workdir: str, which: str | None, step: int | None) -> Read:
    """The parameters of the network of a run; of a LoRA's, with its maps added to the frozen ones."""
    abstract = flat(models.abstract(experiment.model, experiment.shape))
    if experiment.lora is None:

        def read(name: str) -> jax.Array:
            target = unflatten_dict({name: abstract[name]}, sep="/")
            found = restore_params(workdir, target, which=which, step=step, part=True)
            return flat(found.params)[name]

        return read
    pairs, base = pairs_of(experiment, workdir, which, step), of_base(experiment)
    return lambda name: low_rank.merge(experiment.lora, name, base(name), pairs)


def of_base(experiment: Experiment) -> Read:
    """The parameters of the frozen network of a LoRA."""
    source, shape = experiment.settings("init_from"), experiment.shape
    abstract = flat(models.abstract(experiment.model, shape))

    def read(name: str) -> jax.Array:
        target = unflatten_dict({name: abstract[name]}, sep="/")
        return init_from.read(source, target, experiment.model, shape, part=True).params[name]

    return read


def pairs_of(experiment: Experiment, workdir: str, which: str | None, step: int | None) -> Any:
    """What a LoRA run trained."""
    abstract = jax.eval_shape(experiment.init, rng.root(0))
    return restore_params(workdir, abstract, which=which, step=step).params


def merged(experiment: Experiment) -> Experiment:
    """The experiment of a LoRA run with its maps added to the network: as if that had been trained."""
    config = plain(experiment.config)
    for section in ("lora", "init_from"):
        del config[section]
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
    form: Format, experiment: Experiment, read: Read, out: str, **how: Any
) -> list[pathlib.Path]:
    """Write the network of a run in a format; ``how``: as of ``writing.write``. The files."""
    model, shape = experiment.model, experiment.shape
    form.check(model)
    entries, abstract = form.table(model, ()), models.abstract(model, shape)
    fixed, parts = form.fixed(model, shape), form.views(model)
    layout = {**fixed, **views.joined_layout(mapping.layout(entries, abstract), parts)}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, group in mapping.by_path(entries).items():
            part = unflatten_dict({path: read("/".join(path))})
            yield from mapping.tensors(part, group, abstract)

    shapes = {name: x.shape for name, x in layout.items()}
    found = itertools.chain(fixed.items(), views.joined(tensors(), parts))
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
    return writing.write(out, layouts.STEM, shapes, state.items(), metadata=told, **how)
