"""Frozen text encoders, several as one: from texts to the arrays that a model is conditioned on.

Several are joined as in Stable Diffusion 3: CLIPs along the channels, then the others along the
sequence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from dit.config import parse_spec, resolve
from dit.draw import placed
from dit.parallel import compiler
from dit.parallel.mesh import batch_shards, replicated
from dit.parallel.rules import in_force, shardings
from dit.text import Encoded
from dit.text.pretrained.encoder import Encoder, join
from dit.types import Params, UserError

Tokens = list[dict[str, np.ndarray]]  # of each encoder: ids and mask, a row a text


@dataclasses.dataclass(frozen=True, eq=False)
class Encoders:
    """``names``: as they were asked for, in the order of ``encoders``."""

    names: tuple[str, ...]
    encoders: tuple[Encoder, ...]
    mesh: Mesh
    _compiled: dict[int, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, names: Sequence[str], mesh: Mesh, **shared: Any) -> Encoders:
        """Those of ``NAME:KEY=VALUE,...``; ``shared``: options where they have none of their own.

        Raises UserError for one that cannot be opened.
        """
        found = []
        for name in names:
            spec = shared | parse_spec(name)
            found.append(resolve("text.pretrained", spec.pop("name"), **spec))
        return cls(tuple(names), tuple(found), mesh)

    def tokens(self, texts: Sequence[str]) -> tuple[Tokens, list[str]]:
        """The tokens of texts, and a line for each encoder that reads some of them in part."""
        tokens, told = [], []
        for encoder, name in zip(self.encoders, self.names, strict=True):
            found = encoder.tokens(texts)
            tokens.append({"ids": found.ids, "mask": found.mask})
            if found.cut:
                shown = ", ".join(repr(texts[i][:40]) for i in found.cut[:3])
                told.append(
                    f"{name} reads {encoder.length} tokens and cuts {len(found.cut)} of {len(texts)} "
                    f"texts: {shown}"
                )
        return tokens, told

    def rows(self, batch: int) -> int:
        """The least multiple of the shards of a batch that holds ``batch`` texts."""
        shards = batch_shards(self.mesh)
        return -(-batch // shards) * shards

    @functools.cached_property
    def params(self) -> list[Params]:
        """The weights, on the devices."""
        return [e.load(shardings(e.abstract(), e.axes(), self.mesh)) for e in self.encoders]

    def compiled(self, rows: int) -> Any:
        """What makes arrays of the tokens of ``rows`` texts."""
        if rows not in self._compiled:
            step = jax.jit(
                functools.partial(embed, self.encoders, self.mesh),
                out_shardings=replicated(self.mesh),
                compiler_options=compiler.options(self.mesh.devices.flat[0].platform),
            )
            blank, _ = self.tokens([""] * rows)
            self._compiled[rows] = step.lower(self.params, self._placed(blank)).compile()
        return self._compiled[rows]

    def __call__(self, tokens: Tokens, rows: int) -> dict[str, np.ndarray]:
        """``context``, ``context_mask`` and ``pooled`` of texts, by ``rows`` at a time."""
        count = len(tokens[0]["ids"])
        starts = range(0, count, rows)
        picked = [np.minimum(np.arange(i, i + rows), count - 1) for i in starts]  # the last repeats
        step, parts = self.compiled(rows), []
        for r in picked:
            batch = self._placed([{k: v[r] for k, v in t.items()} for t in tokens])
            parts.append(jax.device_get(step(self.params, batch)))
        arrays = {k: np.concatenate([part[k] for part in parts])[:count] for k in parts[0]}
        check(arrays)
        return arrays

    def _placed(self, tokens: Tokens) -> list[dict[str, Array]]:
        return [placed(t, self.mesh) for t in tokens]


def embed(
    encoders: Sequence[Encoder], mesh: Mesh, params: Params, tokens: Sequence[dict[str, Array]]
) -> dict[str, Array]:
    """What the encoders together make of one batch of texts; to be jitted."""
    with in_force(mesh):
        encoded = [e.encode(p, **t) for e, p, t in zip(encoders, params, tokens, strict=True)]
    groups: dict[bool, list[Encoded]] = {True: [], False: []}
    for encoder, part in zip(encoders, encoded, strict=True):
        groups[encoder.model.beside].append(part)
    return {k: x for k, x in vars(join(groups[True], groups[False])).items() if x is not None}


def check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise UserError for no arrays at all, and for numbers that are not finite."""
    if not arrays:
        raise UserError(
            "the encoders give nothing: a T5 has no pooled vector, leave use=pooled out"
        )
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise UserError(f"the {name} has values that are not finite: are the weights damaged?")
