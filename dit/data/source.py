"""What a data source is: two splits of examples that can be asked for by number.

An example is a dict: ``x``, an array ``(f, h, w, c)``, uint8 in [0, 255] (pixels) or floating point
(latents); and what the example is conditioned on, by the names of ``Cond``'s fields: ``label``, an int,
for classes. Unlabelled data have no ``label`` at all. Captioned data have a ``caption``, a str or a list
of them: ``data.captions`` makes tokens of it, and it enters no batch. Asking twice for example ``i``
gives the same example, so a position in the data is one integer, and resuming is exact.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dit.config import fingerprint
from dit.data.travel import Travels
from dit.types import UserError

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]
Shape = tuple[int, int, int, int]
STREAM_LENGTH = 2**62  # examples of an endless stream


@runtime_checkable
class Split(Protocol):
    """Examples by number, with the identity of the data they come from.

    ``streaming``: made from the index on demand, so there are no epochs and nothing to shuffle.
    ``transforms``: the augmentations that belong to this split (``dit.data.transforms``).
    A split with examples of several shapes has ``bucket_sizes`` too: how many there are of each, one
    bucket after the other; 0 for a shape that only the other split has. It may have ``bucket_weights``:
    whole numbers, in proportion to which buckets take turns in training, in place of their sizes.
    """

    fingerprint: str
    streaming: bool
    transforms: tuple[Transform, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: its training and held-out splits and the shape ``(f, h, w, c)`` of an example.

    ``shapes``: that of each bucket, where there are several; ``shape`` is the first of them.
    ``num_classes`` is None for unlabelled data, whose examples have no ``label``. ``fingerprint``
    changes with the options and the content: a checkpoint made with one refuses to go on with another.
    ``codec``: the fingerprint of the weights that made latents, where it is known. ``parts``: the
    sources that a mixture is made of, each of which can be judged by itself. ``text``: what made
    embeddings of the captions, ``{"encoders": how they were used, "weights": their fingerprint}``.
    ``fps``: frames a second of clips, where that is known.
    Raises UserError for labels, where a split holds them as an array, that do not fit the classes.
    """

    train: Split
    held_out: Split
    shape: Shape
    num_classes: int | None
    fingerprint: str
    streaming: bool = False
    shapes: tuple[Shape, ...] = ()
    codec: str | None = None
    parts: tuple[Source, ...] = ()
    text: Mapping[str, Any] | None = None
    fps: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "shapes", self.shapes or (self.shape,))
        for split in (self.train, self.held_out):
            label = getattr(split, "label", None)
            if (label is None) != (self.num_classes is None) and hasattr(split, "label"):
                raise UserError(
                    f"got num_classes={self.num_classes} for {split.fingerprint} "
                    f"{'without' if label is None else 'with'} labels; expected a number of classes "
                    "where there are labels, and None where there are none"
                )
            if isinstance(label, np.ndarray):
                check_labels(label, self.num_classes, f"of {split.fingerprint}")
            if len(bucket_sizes(split)) != len(self.shapes):
                raise ValueError(
                    f"got {len(self.shapes)} shapes for the {len(bucket_sizes(split))} buckets of "
                    f"{split.fingerprint}; expected one for each"
                )
        for i, sizes in enumerate(
            zip(*map(bucket_sizes, (self.train, self.held_out)), strict=True)
        ):
            if not any(sizes):
                raise UserError(
                    f"no example of {self.fingerprint} has shape {self.shapes[i]}, one of "
                    f"{len(self.shapes)}: leave that size out of the data's options"
                )
        if len({shape[-1] for shape in self.shapes}) > 1:
            raise UserError(
                f"got examples of {self.shapes}; expected the same number of channels of all"
            )

    def bucket(self, i: int) -> Source:
        """The examples of bucket i's shape, which may have other buckets, as a source of their own."""
        if len(self.shapes) == 1:
            return self
        shape = self.shapes[i]
        alike = [k for k, other in enumerate(self.shapes) if other == shape]
        train, held_out = (Bucket(split, *alike) for split in (self.train, self.held_out))
        name = "/".join((self.fingerprint, *map(str, alike)))
        rest = (self.num_classes, name, self.streaming)
        parts = tuple(p.bucket(p.shapes.index(shape)) for p in self.parts if shape in p.shapes)
        beside = {"codec": self.codec, "parts": parts, "text": self.text, "fps": self.fps}
        return Source(train, held_out, shape, *rest, **beside)


def bucket_sizes(split: Split) -> tuple[int, ...]:
    """How many examples of each shape there are, one bucket after the other."""
    return getattr(split, "bucket_sizes", (len(split),))


def bucket_weights(split: Split) -> tuple[int, ...]:
    """In proportion to what the buckets take turns."""
    return getattr(split, "bucket_weights", bucket_sizes(split))


class Bucket:
    """The examples of one bucket of a split, or of several, one after the other."""

    def __init__(self, split: Split, *which: int):
        sizes = bucket_sizes(split)
        self._split = split
        self._starts = [sum(sizes[:i]) for i in which]
        self._ends = list(itertools.accumulate(sizes[i] for i in which))
        self.fingerprint = "/".join((split.fingerprint, *map(str, which)))
        self.streaming, self.transforms = split.streaming, split.transforms

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        return self._split[self._place(i)]

    def caption(self, i: int) -> str:
        """See ``captions.Tokenized``."""
        return self._split.caption(self._place(i))

    def _place(self, i: int) -> int:
        k = bisect.bisect_right(self._ends, i)
        return self._starts[k] + i - (self._ends[k - 1] if k else 0)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit(Travels):
    """A split held in memory, or mapped: ``x`` of shape ``(n, f, h, w, c)`` and ``label`` ``(n,)``.

    ``label=None``: unlabelled.
    """

    x: np.ndarray
    label: np.ndarray | None
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        x = np.asarray(self.x[i])
        check_finite(x, lambda: f"example {i} of {self.fingerprint}")
        return {"x": x, **label_of(self.label, i)}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Stream(Travels):
    """A split of ``length`` examples, each made when it is asked for: ``make(rng, i)``.

    Example ``i`` is a pure function of the seed, the last part of the ``fingerprint`` (``train`` or
    ``held_out``) and ``i``.
    """

    seed: int
    length: int
    fingerprint: str
    streaming: bool = True
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        check_index(i, self.length)
        return self.make(self.random(i), i)

    def random(self, i: int) -> np.random.Generator:
        """The random numbers of example ``i``."""
        return generator(self.seed, self.fingerprint.rsplit("/")[-1], i)

    def make(self, rng: np.random.Generator, i: int) -> Example:
        """Example ``i`` from its own random numbers."""
        raise NotImplementedError


def check_index(i: int, length: int) -> None:
    """Raise IndexError unless ``0 <= i < length``: a negative index is a mistake, not the last one."""
    if not 0 <= i < length:
        raise IndexError(f"got example {i}; expected 0 <= index < {length}")


def check_finite(x: np.ndarray, where: Callable[[], str]) -> None:
    """Raise UserError if a floating point array holds a NaN or an infinity, naming ``where()``."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        count = int(np.size(x) - np.isfinite(x).sum())
        raise UserError(
            f"{where()} holds {count} values of {x.size} that are not finite (NaN or infinite): "
            "compute it again, or take it out of the data"
        )


def check_labels(label: np.ndarray, num_classes: int, where: str) -> None:
    """Raise UserError for labels that are no whole numbers in ``[0, num_classes)``; names the first."""
    if label.dtype.kind not in "iu":
        raise UserError(f"got labels {where} of type {label.dtype}; expected whole numbers")
    wrong = np.flatnonzero((label < 0) | (label >= num_classes))
    if len(wrong):
        raise UserError(
            f"got label {label[wrong[0]]} in row {wrong[0]} {where}, one of {len(wrong)} that do not "
            f"fit; expected 0 to {num_classes - 1}, for {num_classes} classes"
        )


def label_of(label: np.ndarray | None, i: int) -> dict[str, int]:
    """The entry ``label`` of an example; nothing for unlabelled data."""
    return {} if label is None else {"label": int(label[i])}


def identity(name: str, **facts) -> str:
    """The fingerprint of a source: its name and twelve hex digits over the JSON-able ``facts``."""
    return f"{name}-{fingerprint(facts)}"


def digest(*arrays: np.ndarray) -> str:
    """Sixteen hex digits over the bytes, shapes and dtypes of ``arrays``."""
    sha = hashlib.sha256()
    for a in arrays:
        sha.update(f"{a.shape}{a.dtype}".encode() + np.ascontiguousarray(a).tobytes())
    return sha.hexdigest()[:16]


def generator(seed: int, name: str, index: int) -> np.random.Generator:
    """Random numbers that are a pure function of the seed, the stream's name and the index."""
    if not 0 <= seed < 2**32:
        raise UserError(f"got seed {seed}; expected 0 <= seed < 2**32")
    key = np.array([zlib.crc32(name.encode()) << 32 | seed, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def stratified(label: np.ndarray, seed: int) -> np.ndarray:
    """All indices in a seeded order in which every prefix holds each class in its proportion.

    Within a class the order is random; an index is placed by its rank relative to the class's size.
    """
    rank = np.empty(len(label))
    classes, starts = np.unique(np.sort(label), return_index=True)
    by_class = np.split(np.argsort(label, kind="stable"), starts[1:])
    for c, members in zip(classes, by_class, strict=True):
        order = generator(seed, "split", int(c)).permutation(len(members))
        rank[members] = (order + 0.5) / len(members)
    return np.argsort(rank, kind="stable")


def split_rows(label: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and the held-out examples, a fraction ``held_out`` of all.

    Raises UserError unless both keep at least one example.
    """
    count = round(held_out * len(label))
    if not 1 <= count < len(label):
        raise UserError(
            f"got held_out={held_out} of {len(label)} examples, which leaves {count} held out; "
            "expected a fraction that leaves one or more on both sides"
        )
    order = stratified(label, seed)
    return np.sort(order[count:]), np.sort(order[:count])
