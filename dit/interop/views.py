"""Parts of foreign arrays as arrays of their own, in another order: read lazily, written back exactly.

For files that keep several of our parameters in one array (q, k, v and an MLP's input; shift and scale
in another order) or number channels otherwise (rotary pairs next to each other, not half a head apart).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dit.types import UserError


@dataclasses.dataclass(frozen=True)
class View:
    """``length`` indices from ``start`` on of one ``axis`` of the foreign array ``name``.

    ``length=None``: all from there on. If ``fold`` is given they are numbered as an array of that shape,
    one size of which may be -1, whose axes are then taken in ``order``.
    """

    name: str
    start: int = 0
    length: int | None = None
    axis: int = 0
    fold: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    def read(self, x: np.ndarray) -> np.ndarray:
        """The part of ``x``; UserError for one that has no such part."""
        end = x.shape[self.axis] if self.length is None else self.start + self.length
        if end > x.shape[self.axis]:
            raise UserError(f"{self.name} has shape {x.shape}; it does not fit the model")
        x = x[(*(slice(None),) * self.axis, slice(self.start, end))]
        if not self.fold:
            return x
        size, known = end - self.start, math.prod(n for n in self.fold if n > 0)
        if size % known:
            raise UserError(
                f"{self.name} has {size} indices where {self.fold} fit; check the model"
            )
        before, after = x.shape[: self.axis], x.shape[self.axis + 1 :]
        folded = x.reshape(*before, *self.fold, *after)
        axes = [self.axis + i for i in self.order]
        rest = range(self.axis + len(self.fold), folded.ndim)
        return folded.transpose(*range(self.axis), *axes, *rest).reshape(x.shape)

    def write(self, x: np.ndarray) -> np.ndarray:
        """The inverse of ``read``: the part, in the foreign order."""
        if not self.fold:
            return x
        known = math.prod(n for n in self.fold if n > 0)
        fold = tuple(x.shape[self.axis] // known if n < 0 else n for n in self.fold)
        back = tuple(np.argsort(self.order).tolist())
        there = tuple(fold[i] for i in self.order)
        return dataclasses.replace(self, start=0, length=None, fold=there, order=back).read(x)

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what ``write`` makes of a part of this shape."""
        return shape


class Region(NamedTuple):
    """A tensor ``name``, or as many indices of its ``axis``, from ``start`` on, as ``x`` has."""

    name: str
    x: np.ndarray
    axis: int = 0
    start: int = 0


class Views(Mapping[str, Any]):
    """A foreign state with views, by names of their own, in place of the arrays that they show."""

    def __init__(self, state: Mapping[str, Any], views: Mapping[str, View]):
        self._state = state
        self._views = {name: view for name, view in views.items() if view.name in state}
        shown = {view.name for view in views.values()}
        self._plain = {name for name in state if name not in shown}

    def __getitem__(self, name: str) -> Any:
        if name in self._plain:
            return self._state[name]
        view = self._views[name]
        return view.read(np.asarray(self._state[view.name]))

    def __iter__(self) -> Iterator[str]:
        yield from self._plain
        yield from self._views

    def __len__(self) -> int:
        return len(self._plain) + len(self._views)


def regions(
    tensors: Iterable[tuple[str, np.ndarray]], views: Mapping[str, View]
) -> Iterator[Region]:
    """``tensors``, where they belong in the foreign ones of which ``Views`` shows the parts."""
    for name, x in tensors:
        view = views.get(name)
        if view is None:
            yield Region(name, x)
        else:
            yield Region(view.name, view.write(x), view.axis, view.start)


def filled(layout: Mapping[str, Any], regions: Iterable[Region]) -> dict[str, np.ndarray]:
    """The tensors of these shapes and types that the regions make up."""
    found = {name: np.empty(x.shape, x.dtype) for name, x in layout.items()}
    for name, x, axis, start in regions:
        at = slice(start, start + x.shape[axis]) if x.ndim else ...
        found[name][(*(slice(None),) * axis, at)] = x
    return found


def joined_layout(layout: Mapping[str, Any], views: Mapping[str, View]) -> dict[str, Any]:
    """The shapes and types of what ``regions`` make up, from those of ``tensors``."""
    found: dict[str, Any] = {name: x for name, x in layout.items() if name not in views}
    for name, view in views.items():
        part, whole = layout[name], found.get(view.name)
        shape = list(view.whole(part.shape))
        shape[view.axis] += 0 if whole is None else whole.shape[view.axis]
        found[view.name] = jax.ShapeDtypeStruct(tuple(shape), part.dtype)
    return found
