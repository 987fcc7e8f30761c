"""Evaluation: samples (uint8) against real data, with no knowledge of how they were made.

``evaluate_images`` and ``evaluate_clips`` return flat dicts of floats. Every figure comes with what real
data score under the same code: a number without its floor is not a number.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from dit.types import UserError


@runtime_checkable
class Split(Protocol):
    """Examples ``{"x": uint8 (f, h, w, c), "label": int}`` by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


@runtime_checkable
class Real(Protocol):
    """The real data: a training and a held-out split, and the shape ``(f, h, w, c)`` of an example."""

    train: Split
    held_out: Split
    shape: tuple[int, int, int, int]
    num_classes: int | None


def gather(split: Split, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``limit`` examples as arrays: ``x`` ``(n, f, h, w, c)`` and ``label`` ``(n,)``."""
    examples = [split[i] for i in range(min(limit, len(split)))]
    return np.stack([e["x"] for e in examples]), np.array([e["label"] for e in examples])


def check_samples(samples: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise UserError unless ``samples`` are uint8 of ``shape`` with one label each, two or more."""
    if samples.dtype != np.uint8 or samples.shape[1:] != tuple(shape):
        expected = ", ".join(["n", *map(str, shape)])
        raise UserError(f"got samples {samples.dtype} {samples.shape}; expected uint8 ({expected})")
    if labels.shape != (len(samples),) or len(samples) < 2:
        raise UserError(
            f"got {len(samples)} samples and labels of shape {labels.shape}; expected a label for "
            "each of 2 samples or more"
        )
