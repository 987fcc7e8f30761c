"""A directory of latents that an autoencoder computed beforehand, in one file or many.

``latents.npy``: ``(n, h, w, c)`` or ``(n, f, h, w, c)``, float16 or float32, unscaled (the codec
scales); ``labels.npy``: ``(n,)`` integers, absent for unlabelled data. Or shards of the same: any number
of ``latents-NAME.npy``, alike but for ``n``, each with its ``labels-NAME.npy`` or none of them with any.
With ``moments=True`` the channels are the mean followed by the standard deviation of a Gaussian
encoder, ``2 c`` in all, and each visit in training draws another latent. The files are mapped, not read
into memory, each when it is first needed, after its header is checked.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np

from dit.data.npy import open_npy
from dit.data.source import (
    Example,
    Source,
    Transform,
    check_finite,
    check_index,
    check_labels,
    digest,
    identity,
    label_of,
    split_rows,
)
from dit.data.transforms import sample_posterior
from dit.data.travel import Travels
from dit.types import Count, Fraction, Seed, UserError

ONE, MANY = "latents.npy", "latents-*.npy"


def build(
    *,
    path: str,
    num_classes: Count | None = None,
    moments: bool = False,
    shape: tuple[Count, Count, Count, Count] | None = None,
    held_out: Fraction = 0.01,
    split_seed: Seed = 0,
) -> Source:
    """Latents under ``path``; ``num_classes`` is one more than the largest label unless given.

    ``shape``: of an example, ``(f, h, w, c)``, if it is to be checked; programs can then be compiled
    ahead of time where the files are not (``dit.preflight``).
    Raises UserError for a missing or damaged file, or labels that do not fit.
    """
    root = pathlib.Path(path).expanduser()
    names = find(root)
    data, samples = Shards.of(root, names)
    if moments and data.shape[-1] % 2:
        raise UserError(f"got {data.shape[-1]} channels with moments=True; expected an even number")
    label = read_labels(root, names, data.counts)
    if label is None and num_classes is not None:
        raise UserError(
            f"got data.num_classes={num_classes}, but there are no labels in {str(root)!r}: put them "
            f"into {labels_of(names[0])}, or set data.num_classes=None for unlabelled data"
        )
    if label is not None:
        num_classes = max(1, int(label.max()) + 1) if num_classes is None else num_classes
        check_labels(label, num_classes, f"of the labels in {str(root)!r}")
    name = identity(
        "latents",
        shape=(len(data), *data.shape),
        dtype=str(data.dtype),
        labels=None if label is None else digest(label),
        content=samples,
        moments=moments,
        held_out=held_out,
        split_seed=split_seed,
    )
    strata = np.zeros(len(data), np.int64) if label is None else label
    kept, aside = split_rows(strata, held_out, split_seed)
    train, held = (
        Latents(data, label, rows, moments, part == "train", f"{name}/{part}", transforms=t)
        for part, rows, t in (
            ("train", kept, (sample_posterior,) if moments else ()),
            ("held_out", aside, ()),
        )
    )
    found = train[0]["x"].shape
    if shape is not None and tuple(shape) != found:
        raise UserError(f"got data.shape={tuple(shape)}; the latents in {root} have {found}")
    return Source(train, held, found, num_classes, name)


def find(root: pathlib.Path) -> list[str]:
    """The names of the files of latents in ``root``: one, or the shards in alphabetical order."""
    one, many = (root / ONE).exists(), sorted(p.name for p in root.glob(MANY))
    if one and many:
        raise UserError(
            f"{str(root)!r} holds {ONE} beside {many[0]!r} and other shards; expected one or the "
            "other: which are the data?"
        )
    if not one and not many:
        raise UserError(
            f"no file {str(root / ONE)!r} and no {MANY}: set data.path to a directory of latents"
        )
    return many or [ONE]


def labels_of(name: str) -> str:
    """The name of the labels of a file of latents."""
    return name.replace("latents", "labels", 1)


def read_labels(root: pathlib.Path, names: list[str], counts: tuple[int, ...]) -> np.ndarray | None:
    """The labels of all rows, int64; None if no file has any. UserError unless they fit the files."""
    expected = {labels_of(name) for name in names}
    there = {p.name for pattern in (ONE, MANY) for p in root.glob(labels_of(pattern))}
    if not there:
        return None
    if there != expected:
        odd = sorted(there ^ expected)[0]
        raise UserError(
            f"{str(root)!r} has {len(there)} files of labels for {len(names)} of latents, and "
            f"{odd!r} {'belongs to none' if odd in there else 'is missing'}: expected labels-NAME.npy "
            "for every latents-NAME.npy (labels.npy for latents.npy), or no labels at all"
        )
    parts = []
    for name, count in zip(map(labels_of, names), counts, strict=True):
        part = np.asarray(open_npy(root / name, "integers (n,)", "iu", (1,)))
        if len(part) != count:
            raise UserError(f"got {len(part)} labels in {str(root / name)!r}; expected {count}")
        parts.append(part.astype(np.int64))
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """The rows of all files, in order. A file is mapped when one of its rows is first read."""

    root: pathlib.Path
    names: tuple[str, ...]
    counts: tuple[int, ...]
    shape: tuple[int, ...]  # of a row
    dtype: np.dtype
    _maps: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, root: pathlib.Path, names: list[str]) -> tuple[Shards, list[str]]:
        """The shards, and a digest of three rows of each: cheap, not of the whole file.

        Raises UserError for a file that is damaged or unlike the first.
        """
        counts, samples, first = [], [], None
        for name in names:
            x = open_latents(root / name)
            first = x if first is None else first
            if (x.shape[1:], x.dtype) != (first.shape[1:], first.dtype):
                raise UserError(
                    f"{str(root / name)!r} holds {x.dtype} {x.shape}, but {names[0]!r} "
                    f"{first.dtype} {first.shape}; expected shards that differ in their length alone"
                )
            counts.append(len(x))
            samples.append(digest(x[0], x[len(x) // 2], x[-1]))
        return cls(root, tuple(names), tuple(counts), first.shape[1:], first.dtype), samples

    def __len__(self) -> int:
        return sum(self.counts)

    def place(self, row: int) -> tuple[int, int]:
        """Which file a row is in, and which row of that file it is."""
        file = int(np.searchsorted(self.ends, row, side="right"))
        return file, int(row - (self.ends[file - 1] if file else 0))

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """The number of rows up to the end of each file."""
        return np.cumsum(self.counts)

    def row(self, row: int) -> np.ndarray:
        """A copy of one row."""
        file, within = self.place(row)
        if file not in self._maps:
            x = open_latents(self.root / self.names[file])
            if (len(x), x.shape[1:], x.dtype) != (self.counts[file], self.shape, self.dtype):
                raise UserError(f"{self.names[file]!r} in {str(self.root)!r} changed meanwhile")
            self._maps[file] = x
        return np.array(self._maps[file][within])

    def where(self, row: int) -> str:
        """``row 5 of '.../latents.npy'``."""
        file, within = self.place(row)
        return f"row {within} of {str(self.root / self.names[file])!r}"

    def __getstate__(self) -> dict:
        return {**vars(self), "_maps": {}}  # another process maps the files itself


def open_latents(path: pathlib.Path) -> np.ndarray:
    """Map one file of latents."""
    return open_npy(path, "floating point (n, h, w, c) or (n, f, h, w, c)", "f", (4, 5))


@dataclasses.dataclass(frozen=True, eq=False)
class Latents(Travels):
    """``rows`` of the shards. With ``moments``, ``x`` is the mean; ``std`` is beside it in training."""

    data: Shards
    label: np.ndarray | None  # of all rows of the shards
    rows: np.ndarray
    moments: bool
    training: bool
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        row = int(self.rows[i])
        z = self.data.row(row)
        check_finite(z, lambda: self.data.where(row))
        z = z if z.ndim == 4 else z[None]
        label = label_of(self.label, row)
        if not self.moments:
            return {"x": z, **label}
        mean, std = np.split(z, 2, axis=-1)
        if std.min() < 0:
            raise UserError(
                f"{self.data.where(row)} holds a negative standard deviation ({std.min():.4g}); "
                "expected standard deviations in the second half of the channels: are these "
                "logarithms of variances?"
            )
        return {"x": mean, **({"std": std} if self.training else {}), **label}
