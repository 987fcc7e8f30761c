"""Figures in the features of a network that was trained on other pictures (``evaluation.features``).

Their names end in the network's, because a distance means nothing without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from dit.evaluation import Real, Split, frechet, gather
from dit.evaluation.adherence import interval
from dit.evaluation.features import Features
from dit.evaluation.parts import Figures, Part, too_few

LIMIT = 2_000  # real examples whose features are computed


def part(
    source: Real, count: int, network: Features, asked: Split, captions: Sequence[str] = ()
) -> Part:
    """The ``frechet.FIGURES`` of ``count`` samples and held-out pictures in a network's features.

    And, for samples whose prompts were the ``captions`` of the first examples of ``asked``,
    ``nearest_asked``: the share whose nearest picture, of all that were asked for, has the caption that
    the sample was asked for; with a 95% interval, and ``nearest_asked_chance``.
    """
    real = gather(source.held_out, LIMIT, lambda x: x)[0][:, 0]
    few = too_few(count, len(real))
    lone = ("there are no captions" if not captions else "") or (
        "" if len(set(captions)) > 1 else "all samples are asked for the same"
    )
    ends = ("", "_low", "_high", "_chance")
    lacks = {f"{name}_{network.name}": few for name in frechet.FIGURES}
    lacks |= {f"nearest_asked_{network.name}{end}": lone for end in ends}

    def measure(samples: UInt8[np.ndarray, "n f h w c"], labels: np.ndarray | None) -> Figures:
        ours, found = network.pictures(samples[:, 0]), {}
        if not few:
            found = frechet.figures(ours, network.pictures(real))
        if not lone:
            found |= nearest_asked(ours, network, asked, captions)
        return {_named(name, network.name): value for name, value in found.items()}

    return Part(lacks, measure)


def _named(figure: str, network: str) -> str:
    """The figure's name with the network's, before what says which bound it is."""
    for end in ("_low", "_high", "_chance"):
        if figure.endswith(end):
            return f"{figure.removesuffix(end)}_{network}{end}"
    return f"{figure}_{network}"


def nearest_asked(
    ours: np.ndarray, network: Features, asked: Split, captions: Sequence[str]
) -> Figures:
    """``nearest_asked``, its interval and chance; see ``part``. ``ours``: the samples' features."""
    rows = dict.fromkeys(i % len(asked) for i in range(len(captions)))
    theirs = network.pictures(np.stack([asked[i]["x"][0] for i in rows]))
    squares = (theirs**2).sum(1)[None] - 2 * ours @ theirs.T  # less |ours|^2, equal for all
    said = [captions[i] for i in rows]
    yes = sum(said[k] == want for k, want in zip(squares.argmin(1), captions, strict=True))
    low, high = interval(yes, len(captions))
    chance = float(np.mean([said.count(want) / len(said) for want in captions]))
    found = {"": yes / len(captions), "_low": low, "_high": high, "_chance": chance}
    return {f"nearest_asked{end}": value for end, value in found.items()}
