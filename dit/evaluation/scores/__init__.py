"""The scores that papers report, one a file: distances of samples from a reference, in features.

``config.resolve("evaluation.scores", NAME)`` gives ``plan(about) -> Plan``: what is to be collected of
which pictures (``Need``), which figures come of it, and ``measure(sets)``. Every figure ends in its
network's name, or has the name by which it is known (FID, KID, sFID), and has beside it the standard
error ``NAME_error`` of drawing other samples; an error says nothing of the bias of a finite number of
them, which differs from score to score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from dit.evaluation.collect import Collector
from dit.evaluation.features import Features

Key = tuple[str, str, str]  # network, its output, and the kind of collector


@dataclasses.dataclass(frozen=True)
class Need:
    """What is collected of an output of a network.

    ``make(samples, size, frames)``: the collector of so many samples; ``of``: which sets of pictures.
    Needs of equal ``key`` and set share one.
    """

    key: Key
    make: Callable[[int, int, int], Collector]
    of: tuple[str, ...] = ("samples", "reference")


@dataclasses.dataclass(frozen=True)
class About:
    """What a score may know before anything is drawn.

    ``samples``: how many, of so many ``frames`` each. ``captions``: what each was asked for, if they
    were. ``held_out``: how many new pictures there are beside the reference. ``mesh``: the devices.
    """

    networks: tuple[Features, ...]
    samples: int
    frames: int = 1
    captions: Sequence[str] = ()
    held_out: int = 0
    mesh: Mesh | None = None


Sets = Mapping[str, Mapping[Key, Collector]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """``lacks``: why each figure cannot be had, or ``""``; ``seen_by``: the networks it is made with.

    ``protocol``: the score's own settings; ``better``: which of two values is. ``moves(sets)``, of a
    score that is smooth in the samples: for each figure what each sample adds to it to first order,
    times their number ``n``; its error is ``std(moves) / sqrt(n)``. The sets hold the samples' rows too.
    """

    needs: tuple[Need, ...]
    lacks: Mapping[str, str]
    measure: Callable[[Sets], dict[str, float]]
    seen_by: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    protocol: Mapping[str, object] = dataclasses.field(default_factory=dict)
    better: Literal["lower", "higher"] = "lower"
    moves: Callable[[Sets], dict[str, np.ndarray]] | None = None


def named(known: str, other: str, network: str) -> str:
    """``fid`` for InceptionV3 where that is ``known``, and ``other`` with the network's name else."""
    if network.startswith("inception_v3"):
        return known + network.removeprefix("inception_v3")
    return f"{other}_{network}"


def with_errors(names: Sequence[str], why: str = "") -> dict[str, str]:
    """``lacks`` of figures and of their errors."""
    return {f"{name}{end}": why for name in names for end in ("", "_error")}


def by_network(names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """``seen_by`` of figures that are of one network each, by the networks' names."""
    return {name: (network,) for network, name in names.items()}
