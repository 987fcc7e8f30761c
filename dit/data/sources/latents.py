"""A directory of latents that an autoencoder computed beforehand.

``latents.npy``: ``(n, h, w, c)`` or ``(n, f, h, w, c)``, float16 or float32, unscaled (the codec
scales); ``labels.npy``: ``(n,)`` integers, absent for unlabelled data. With ``moments=True`` the
channels are the mean followed by the standard deviation of a Gaussian encoder, ``2 c`` in all, and
each visit in training draws another latent. The file is mapped, not read into memory, after its
header is checked.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from dit.data.npy import open_npy
from dit.data.source import Example, Source, Transform, check_index, digest, identity, split_rows
from dit.data.transforms import sample_posterior
from dit.types import Count, Fraction, Seed, UserError


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
    x = open_npy(
        root / "latents.npy", "floating point (n, h, w, c) or (n, f, h, w, c)", "f", (4, 5)
    )
    if moments and x.shape[-1] % 2:
        raise UserError(f"got {x.shape[-1]} channels with moments=True; expected an even number")
    labelled = (root / "labels.npy").exists()
    if labelled:
        label = np.array(open_npy(root / "labels.npy", "integers (n,)", "iu", (1,)), np.int64)
        num_classes = num_classes or int(label.max()) + 1
        if label.shape != x.shape[:1] or label.min() < 0 or label.max() >= num_classes:
            raise UserError(
                f"got {len(label)} labels from {label.min()} to {label.max()} in {root}; expected "
                f"{len(x)} from 0 to {num_classes - 1}"
            )
    else:
        label = np.zeros(len(x), np.int64)
    name = identity(
        "latents",
        shape=x.shape,
        dtype=str(x.dtype),
        content=digest(label, x[0], x[len(x) // 2], x[-1]),  # cheap: not the whole file
        moments=moments,
        held_out=held_out,
        split_seed=split_seed,
    )
    kept, aside = split_rows(label, held_out, split_seed)
    transforms = (sample_posterior,) if moments else ()
    train = Latents(x, label, kept, moments, f"{name}/train", transforms=transforms)
    found = train[0]["x"].shape
    if shape is not None and tuple(shape) != found:
        raise UserError(f"got data.shape={tuple(shape)}; the latents in {root} have {found}")
    return Source(
        train=train,
        held_out=Latents(x, label, aside, moments, f"{name}/held_out"),
        shape=found,
        num_classes=num_classes if labelled else None,
        fingerprint=name,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """The ``rows`` of a mapped array. With ``moments``, ``x`` is the mean and ``std`` is beside it."""

    x: np.ndarray
    label: np.ndarray
    rows: np.ndarray
    moments: bool
    fingerprint: str
    streaming: bool = False
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        check_index(i, len(self))
        row = self.rows[i]
        z = np.array(self.x[row])
        z = z if z.ndim == 4 else z[None]
        label = {"label": int(self.label[row])}
        if not self.moments:
            return {"x": z, **label}
        mean, std = np.split(z, 2, axis=-1)
        return {"x": mean, "std": std, **label}
