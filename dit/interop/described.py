"""What the ``config.json`` beside weights says, as sections of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dit import config
from dit.types import UserError

Sections = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Latents:
    """How the latents of an autoencoder are scaled, in a ``config.json`` and in a workdir.

    ``read(model, settings)``: ``mean`` and ``std`` of each channel, None where nothing says them;
    ``written(latents)``: the settings that say these, none where the file has no place for them.
    """

    read: Callable[[Any, Mapping[str, Any]], dict[str, list[float]] | None]
    written: Callable[[Mapping[str, Any]], dict[str, Any]]


def by_settings(
    name: str, always: Mapping[str, Any], sizes: Callable[..., Sections]
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Sections]:
    """``sections(state, settings)`` of a format (``mapping.Format``) whose class is ``name`` there.

    ``always``: settings of theirs that have one value here. ``sizes``: from the others, by their names,
    to sections; those that it does not name say nothing about the network. Raises UserError, when it is
    called, for no ``config.json``, for one of another class and for other values.
    """

    def sections(state: Mapping[str, Any], settings: Mapping[str, Any]) -> Sections:
        if not settings:
            raise UserError(
                "no config.json lies beside the weights, and they do not tell their heads: give "
                "--config=FILE"
            )
        if settings.get("_class_name", name) != name:
            raise UserError(f"config.json is of a {settings['_class_name']}; expected a {name}")
        for key, value in always.items():
            if settings.get(key, value) != value:
                raise UserError(f"config.json says {key}={settings[key]!r}; expected {value!r}")
        known = {k: settings[k] for k in config.keywords(sizes) if settings.get(k) is not None}
        return config.call(sizes, f"config.json of a {name}", **known)

    return sections


def flow(shape: tuple[int, ...], **samples: Any) -> Sections:
    """The process of a network of velocities on the linear path, which counts time to 1000.

    On stand-ins for latents of this ``shape``; ``samples``: how it is sampled.
    """
    return {
        "data": {"name": "noise", "shape": shape},
        "path": {"name": "linear", "time_scale": 1000.0},
        "prediction": {"name": "velocity"},
        "times": {"name": "logit_normal"},
        "samples": {"every": 0, "solver": "euler", **samples},
    }


def published(shape: tuple[int, ...], classes: int) -> Sections:
    """Sections of the published DiT's process, on stand-ins for data of this shape and these classes."""
    return {
        "data": {"name": "noise", "shape": shape, "num_classes": classes},
        "path": {"name": "ddpm"},
        "prediction": {"name": "eps"},
        "times": {"name": "uniform", "levels": 1000},
        "samples": {"every": 0, "solver": "ddim", "grid": "ddpm", "guidance": 4.0},
    }
