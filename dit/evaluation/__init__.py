"""Evaluation: compares samples (uint8) with real data, without knowing how they were made.

``evaluation_of`` (``full``) first examines the real data and reports which figures they allow; called
with samples, it returns a flat dict of floats. Every figure comes with the score of real data under the
same code, because a number without its floor means nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from dit.types import UserError

SIDE = 32  # pixels: larger images are reduced to this size, to bound memory and time


@runtime_checkable
class Split(Protocol):
    """Examples by index: ``{"x": uint8 (f, h, w, c), "label": int}``, or without labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


@runtime_checkable
class Real(Protocol):
    """The real data: a training and a held-out split, and the shape ``(f, h, w, c)`` of an example."""

    train: Split
    held_out: Split
    shape: tuple[int, int, int, int]
    num_classes: int | None


def reduced(x: UInt8[np.ndarray, "*n h w c"]) -> UInt8[np.ndarray, "*n s r c"]:
    """Reduce images to at most ``SIDE`` pixels a side by averaging areas; smaller ones are unchanged."""
    rows, columns = (_areas(side) for side in x.shape[-3:-1])
    if rows is None and columns is None:
        return x
    out = x.astype(np.float32)
    if rows is not None:
        out = np.einsum("sh,...hwc->...swc", rows, out, optimize=True)
    if columns is not None:
        out = np.einsum("rw,...hwc->...hrc", columns, out, optimize=True)
    return np.rint(out).astype(np.uint8)


def _areas(side: int) -> np.ndarray | None:
    """Weights ``(SIDE, side)``: the share of each input pixel in each of the ``SIDE`` output pixels."""
    if side <= SIDE:
        return None
    edges = np.arange(SIDE + 1) * (side / SIDE)
    pixel = np.arange(side)
    low, high = np.maximum(edges[:-1, None], pixel), np.minimum(edges[1:, None], pixel + 1)
    return (np.maximum(0, high - low) * (SIDE / side)).astype(np.float32)


def gather(
    split: Split, limit: int, keep: Callable[[np.ndarray], np.ndarray] = reduced
) -> tuple[np.ndarray, Int[np.ndarray, " n"] | None]:
    """``keep(x)`` of at most ``limit`` examples, ``(n, ...)``, and their labels ``(n,)`` if any.

    The examples are the whole split or, in order, ``limit`` of it chosen at random (always the same
    ones), so that a split sorted by class is represented. Only ``keep(x)`` of each is held in memory.
    Raises UserError if there are none, or if the data are not uint8.
    """
    count = len(split)
    rows = range(count) if count <= limit else sorted(random.Random(0).sample(range(count), limit))
    if not rows:
        raise UserError("got a split without examples; expected one or more to compare with")
    kept, labels = [], []
    for i in rows:
        example = split[i]
        if example["x"].dtype != np.uint8:
            raise UserError(
                f"got data of type {example['x'].dtype}; expected uint8 pixels, 0 to 255"
            )
        kept.append(keep(example["x"]))
        labels.extend([int(example["label"])] if "label" in example else [])
    return np.stack(kept), np.array(labels) if labels else None


def check_samples(samples: np.ndarray, labels: np.ndarray | None, source: Real) -> None:
    """Raise UserError unless ``samples`` are uint8, shaped like the data, each with a valid label.

    Samples of unlabelled data have no labels.
    """
    if samples.dtype != np.uint8 or samples.shape[1:] != tuple(source.shape):
        expected = ", ".join(["n", *map(str, source.shape)])
        raise UserError(f"got samples {samples.dtype} {samples.shape}; expected uint8 ({expected})")
    classes = source.num_classes
    if not len(samples) or (labels is None) != (classes is None):
        raise UserError(
            f"got {len(samples)} samples {'without' if labels is None else 'with'} labels, for data of "
            f"{classes} classes; expected one sample or more, with labels where the data have them"
        )
    if labels is None:
        return
    if labels.shape != (len(samples),):
        raise UserError(
            f"got {len(samples)} samples and labels of shape {labels.shape}; expected one for each"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"got labels from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}"
        )
