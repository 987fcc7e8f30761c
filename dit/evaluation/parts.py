"""The parts of an evaluation. Each knows what it can measure before any sample is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int, UInt8

from dit.evaluation import SIDE, Real, check_samples
from dit.evaluation.classifier import one_class
from dit.types import UserError

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Part:
    """``measure(samples, labels) -> figures``; ``lacks``: why each of them cannot be had, or ``""``.

    ``labels`` is None for unlabelled data.
    """

    lacks: Mapping[str, str]
    measure: Callable[[np.ndarray, np.ndarray | None], Figures]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """``evaluation(samples, labels) -> figures`` of ``count`` samples, ``n f h w c``, of a source."""

    source: Real
    count: int
    parts: tuple[Part, ...]

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that will be measured."""
        return tuple(name for part in self.parts for name, why in part.lacks.items() if not why)

    @property
    def left_out(self) -> dict[str, str]:
        """The figures that these data do not allow, each with the reason."""
        return {name: why for part in self.parts for name, why in part.lacks.items() if why}

    @property
    def size(self) -> str:
        """The size in pixels at which images are judged: smaller than the data if these are large."""
        height, width = (min(side, SIDE) for side in self.source.shape[1:3])
        return f"{height} x {width}"

    def __call__(
        self, samples: UInt8[np.ndarray, "n f h w c"], labels: Int[np.ndarray, " n"] | None
    ) -> Figures:
        """``labels``: None where the data have none.

        Raises UserError for samples that are not like the data, or not ``count`` of them.
        """
        check_samples(samples, labels, self.source)
        if len(samples) != self.count:
            raise UserError(f"got {len(samples)} samples; expected {self.count}, as planned")
        found: Figures = {}
        for part in self.parts:
            if not all(part.lacks.values()):
                found |= part.measure(samples, labels)
        return {name: float(found[name]) for name in self.figures}


def counts(train: np.ndarray, real: np.ndarray) -> Part:
    """How many samples and real examples the other figures are based on."""
    return Part(
        dict.fromkeys(("samples", "real", "train"), ""),
        lambda x, _: {"samples": len(x), "real": len(real), "train": len(train)},
    )


def no_classifier(source: Real, labels: Int[np.ndarray, " n"] | None) -> str:
    """Why no classifier can be fitted to training examples with these labels; empty if one can."""
    if source.num_classes is None or labels is None:
        return "the data have no labels"
    return one_class(labels)


def too_few(count: int, real: int) -> str:
    """Why ``count`` samples have no Frechet distance to ``real`` examples; empty if they have."""
    if count >= 2 and real >= 4:
        return ""
    return f"it needs 2 samples and 4 held-out examples; there are {count} and {real}"
