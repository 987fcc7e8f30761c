"""What a config may hold: its sections, the fields of each, and their defaults.

A section with a ``name`` is resolved in the room that ``ROOMS`` gives; the others hold the keywords of
``PLAIN``. ``complete`` fills in every default, so that the config kept beside a checkpoint is a full
record of the run; ``override`` sets single fields.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
from ml_collections import ConfigDict

from dit import config_file
from dit.config import (
    builder,
    checked,
    defaults,
    keywords,
    open_ended,
    parse_spec,
    required,
    suggest,
)
from dit.init_from import InitFrom
from dit.training import ema
from dit.training import optimizer as optimizers
from dit.training.lora import LoraSettings
from dit.training.samples import SampleSettings
from dit.training.scores import ScoreSettings
from dit.types import Count, Range, Seed, UserError

ROOMS = {
    "data": "data.sources",
    "codec": "codecs",
    "text": "text",
    "concat": "concat",
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
OPTIONAL = ("text", "concat")  # left out of a config, or named "none", for nothing of the kind
HOW = ("remat", "unroll", "attention")  # keywords of a network that say how it is run
WIRED = {  # keywords that the experiment sets, from other parts of the config
    "text": ("dtype", *HOW),
    "model": ("in_channels", "num_classes", "dtype"),
    "objective": ("times", "weight", "patch", "model", "dtype"),
    "schedule": ("lr", "steps"),
}
DIFFUSION = ("path", "prediction", "times", "weight")  # sections for objectives with times alone
PARTS = {"data": ("parts", "data"), "text": ("encoders", "encoder")}  # keywords that hold sections
BESIDE = {"data": ("weight",)}  # what a part of one may have beside the options of its own name
INSIDE = {"encoder": "text.pretrained"}  # rooms of sections that are only inside of others


def precision(*, compute: Literal["auto", "float32", "bfloat16"] = "auto") -> str:
    """The dtype of the network's matrix products; parameters, norms and the loss stay float32.

    ``auto``: bfloat16 on accelerators, float32 on CPUs, which are slower in bfloat16.
    """
    if compute == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return compute


Devices = Count | Literal[-1] | None
Held = Literal["codec", "text", "base"]


def mesh_sizes(
    *,
    preset: str = "dp",
    data: Devices = None,
    fsdp: Devices = None,
    context: Devices = None,
    tensor: Devices = None,
    whole: Held | tuple[Held, ...] = (),
) -> dict[str, int | str | None]:
    """Devices along each mesh axis (-1: all that are left; None: as in the ``preset``).

    ``whole``: the frozen weights of which every device holds all, instead of the part that it would
    hold of trained ones: memory for communication. ``codec``, ``text``, and the ``base`` under a LoRA.
    """
    return {"preset": preset, "data": data, "fsdp": fsdp, "context": context, "tensor": tensor}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Save every ``every`` steps and at the end; keep the latest ``keep`` checkpoints."""

    every: Count = 1000
    keep: Count = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Log every ``every`` steps, to TensorBoard and, if ``wandb`` is true, to Weights & Biases."""

    every: Count = 50
    wandb: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """``workers`` processes read the data (0: this process does).

    In each, ``threads`` threads read and decode examples, and ``prefetch`` batches are made ahead.
    """

    workers: Annotated[int, Range(0, 1024)] = 0
    threads: Annotated[int, Range(0, 1024)] = 2
    prefetch: Annotated[int, Range(0, 1024)] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingSettings:
    """Pack examples of all shapes into rows of ``tokens`` tokens (None: a batch is of one shape).

    ``batch_size`` then counts rows. ``examples``: at most so many in a row (None: as many as fit), of
    whose conditions a batch has a place for each.
    """

    tokens: Count | None = None
    examples: Count | None = None


def numbers(*, seed: Seed = 0, steps: Count, batch_size: Count) -> None:
    """The fields of a config outside of its sections."""


PLAIN = {
    "loader": LoaderSettings,
    "packing": PackingSettings,
    "precision": precision,
    "mesh": mesh_sizes,
    "ema": ema.build,
    "checkpoint": CheckpointSettings,
    "log": LogSettings,
    "samples": SampleSettings,
    "scores": ScoreSettings,
    "init_from": InitFrom,
    "lora": LoraSettings,
}
NUMBERS = tuple(keywords(numbers))


def override(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config with the overrides ``{"a.b": value}`` applied, names of sections first.

    Raises UserError for a field that the section does not take, and lists those that it does.
    """
    out = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for section in ROOMS:
        if _is_none(section, overrides.get(f"{section}.name", "")):
            out.pop(section, None)
        elif f"{section}.name" in overrides:
            said = overrides[f"{section}.name"]  # a command line reads the name "none" as None
            name, extra = _name(section, {"name": "none" if said is None else said})
            before = _section(out, section)
            if name != _name(section, before)[0] or extra:
                takes = fields(section, name)
                out[section] = {k: v for k, v in before.items() if takes is None or k in takes}
            out[section] = {**_section(out, section), "name": name, **extra}
    if overrides.get("objective.name") and not diffuses(overrides["objective.name"]):
        out = {k: v for k, v in out.items() if k not in DIFFUSION}
    for key, value in overrides.items():
        section, dot, field = key.partition(".")
        if section in NUMBERS and not dot:
            out[section] = value
        elif not dot and section in (*ROOMS, *PLAIN):
            raise UserError(f"config.{section} is a section; set one of its fields")
        elif section not in (*ROOMS, *PLAIN):
            raise UserError(f"unknown config field {key!r}: {_near(key, out)}")
        elif section in PLAIN or field != "name":
            given = _section(out, section)
            name = _name(section, given)[0] if section in ROOMS else None
            _check_field(section, name, field)
            out[section] = {**given, field: value}
    return out


def _is_none(section: str, name: Any) -> bool:
    """Whether a section of this name is one that is left out."""
    return section in OPTIONAL and name in (None, "none")


def _near(key: str, config: Mapping[str, Any]) -> str:
    """A hint for a message: the fields of a config that resemble ``key``, or else its sections."""
    known = list(NUMBERS)
    for section in (*ROOMS, *PLAIN):
        name = _name(section, _section(config, section))[0] if section in ROOMS else None
        known += [f"{section}.{field}" for field in fields(section, name) or ()]
    same = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    near = list(dict.fromkeys([*difflib.get_close_matches(key, known, n=3), *same]))[:4]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"expected {', '.join(NUMBERS)}, or SECTION.FIELD in {', '.join((*ROOMS, *PLAIN))}"


def _section(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    return _fields(config.get(section, {}), section)


def _fields(given: Any, at: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(f"got config.{at}={given!r}; expected a section, or none for its defaults")
    return dict(given)


def _name(
    section: str, given: Mapping[str, Any], at: str = ""
) -> tuple[str | None, dict[str, str]]:
    """The name in a section and the fields that it implies: ``tfds:mnist`` is tfds of that dataset."""
    name = given.get("name", DEFAULT_NAMES.get(section))
    if not isinstance(name, str | None) or ("name" in given and name is None):
        raise UserError(
            f"got config.{at or section}.name={name!r}; expected a name, like those in configs/"
        )
    if section == "data" and name is not None and name.startswith("tfds:"):
        return "tfds", {"dataset": name.removeprefix("tfds:")}
    return name, {}


def fields(section: str, name: str | None) -> list[str] | None:
    """The fields that can be set in a section with this name; None if any can."""
    if section in PLAIN:
        return keywords(PLAIN[section])
    if name is None:
        return []
    build = builder(_room(section), name)
    common = keywords(optimizers.common) if section == "optimizer" else []
    own = [k for k in (*common, *keywords(build)) if k not in WIRED.get(section, ())]
    return None if open_ended(build) else own


def _check_field(section: str, name: str | None, field: str, at: str = "") -> None:
    """Raise UserError for a field that a section does not take. ``at``: where it is, if not on top."""
    if field in WIRED.get(section, ()):
        raise UserError(f"got config.{section}.{field}; it follows from other sections")
    known = fields(section, name)
    if known is not None and field not in known:
        close = difflib.get_close_matches(field, known, n=1)
        meant = f"did you mean '{at or section}.{close[0]}'? " if close else ""
        what = section if name is None else f"{section} {name!r}"
        raise UserError(
            f"unknown config field '{at or section}.{field}': {meant}{what} takes "
            + (", ".join(known) or "nothing")
        )


def complete(config: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """``config`` in plain values, with every default filled in.

    Raises UserError for unknown sections and fields, for missing ones (all at once), and for values
    of the wrong type or out of range.
    """
    config = config_file.plain(config)
    known = [*NUMBERS, *ROOMS, *PLAIN]
    for section in config:
        if section not in known:
            raise UserError(f"unknown config section {section!r}: {suggest(section, known)}")
    missing = [key for key in required(numbers) if key not in config]
    out: dict[str, Any] = {**defaults(numbers), **{k: config[k] for k in NUMBERS if k in config}}
    objective = _name("objective", _section(config, "objective"))[0]
    absent = () if objective is None or diffuses(objective) else DIFFUSION
    for section in ROOMS:
        given = _section(config, section)
        if section in absent:
            if given:
                raise UserError(
                    f"got config.{section} with objective {objective!r}, which adds no noise and has "
                    "no times; leave that section out"
                )
            continue
        if section in OPTIONAL and (not given or _is_none(section, given.get("name", ""))):
            continue
        out[section] = _completed(section, given, section, missing)
    for section, build in PLAIN.items():
        given = _section(config, section)
        for field in given:
            _check_field(section, None, field)
        out[section] = {**defaults(build), **given}
    if missing:
        flags = " ".join(f"--config.{key}=..." for key in missing if "[" not in key)
        raise UserError(
            f"the config lacks {', '.join(missing)}: set them in the file"
            + (f", or by {flags}" if flags else "")
        )
    _check_values(out)
    return ConfigDict(out)


def diffuses(objective: str) -> bool:
    """Whether the objective of this name is about diffusion: whether it is told of times."""
    return "times" in keywords(builder(ROOMS["objective"], objective))


def _completed(
    section: str,
    given: Mapping[str, Any],
    at: str,
    missing: list[str],
    beside: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A section with a name, and its parts, with every default. What it lacks goes to ``missing``.

    ``at``: where in the config it is, such as ``data`` or ``data.parts[1]``. ``beside``: fields that
    belong to the section around it.
    """
    name, extra = _name(section, given, at)
    if name is None:
        missing.append(f"{at}.name")
        return {}
    given = {**{k: v for k, v in given.items() if k != "name"}, **extra}
    for field in given:
        if field not in beside:
            _check_field(section, name, field, at)
    needed, wired = required(builder(_room(section), name)), WIRED.get(section, ())
    missing += [f"{at}.{k}" for k in needed if k not in given and k not in wired]
    parts, more = {}, BESIDE.get(section, ())
    for key, inner in _parts(section, given):
        places = [(f"{at}.{key}[{i}]", part) for i, part in enumerate(_several(given[key]))]
        parts[key] = tuple(_completed(inner, _fields(x, at), at, missing, more) for at, x in places)
    return {"name": name, **_defaults(section, name), **given, **parts}


def _room(section: str) -> str:
    return {**ROOMS, **INSIDE}[section]


def _parts(section: str, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The keyword of a section that holds others, if it is there, and what these are."""
    key, inner = PARTS.get(section, ("", ""))
    return [(key, inner)] if isinstance(given.get(key), list | tuple | str) else []


def _several(given: Any) -> list[Any]:
    """The sections in a keyword, of which each may be written ``NAME:KEY=VALUE,...``."""
    each = [given] if isinstance(given, str) else given
    return [parse_spec(part) if isinstance(part, str) else part for part in each]


def _check_values(config: Mapping[str, Any]) -> None:
    """Raise UserError for a value of the wrong type, or outside the range of its keyword."""
    checked(numbers, "a config", {k: config[k] for k in NUMBERS})
    for section in filter(config.__contains__, ROOMS):
        _check_section(section, config[section], f"{section}.")
    for section, build in PLAIN.items():
        build(**checked(build, f"section {section!r}", config[section], at=f"{section}."))


def _check_section(section: str, given: Mapping[str, Any], at: str) -> None:
    name, given = given["name"], {k: v for k, v in given.items() if k != "name"}
    if section == "optimizer":
        shared = {k: given.pop(k) for k in keywords(optimizers.common)}
        checked(optimizers.common, f"{section} {name!r}", shared, at=at)
    wired = WIRED.get(section, ())
    checked(builder(_room(section), name), f"{section} {name!r}", given, wired=wired, at=at)
    for key, inner in _parts(section, given):
        for i, part in enumerate(given[key]):
            own = {k: v for k, v in part.items() if k not in BESIDE.get(section, ())}
            _check_section(inner, own, f"{at}{key}[{i}].")


def _defaults(section: str, name: str) -> dict[str, Any]:
    """The defaults of a section, without the keywords that the experiment sets."""
    common = defaults(optimizers.common) if section == "optimizer" else {}
    own = defaults(builder(_room(section), name))
    return {k: v for k, v in {**common, **own}.items() if k not in WIRED.get(section, ())}
