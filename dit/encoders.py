"""Frozen text encoders on the devices: from texts to the arrays that a model is conditioned on."""

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
from dit.parallel.frozen import identities, place
from dit.parallel.mesh import batch_shards, replicated
from dit.parallel.rules import in_force
from dit.text import FrozenText
from dit.types import Params, UserError

Tokens = dict[str, np.ndarray]  # ids and mask, a row a text


@dataclasses.dataclass(frozen=True, eq=False)
class Encoders:
    """``names``: of the encoders, as they were asked for."""

    names: tuple[str, ...]
    text: FrozenText
    mesh: Mesh
    _compiled: dict[int, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, names: Sequence[str], mesh: Mesh, **shared: Any) -> Encoders:
        """Those of ``NAME:KEY=VALUE,...``; ``shared``: options where they have none of their own.

        Raises UserError for one that cannot be opened.
        """
        given = tuple(shared | parse_spec(name) for name in names)
        return cls(tuple(names), resolve("text", "pretrained", encoders=given), mesh)

    def tokens(self, texts: Sequence[str]) -> tuple[Tokens, list[str]]:
        """The tokens of texts, and a line for each encoder that reads some of them in part."""
        found, told = self.text.words.read(texts), []
        for tokens, name in zip(found, self.names, strict=True):
            if tokens.cut:
                shown = ", ".join(repr(texts[i][:40]) for i in tokens.cut[:3])
                told.append(
                    f"{name} reads {tokens.ids.shape[1]} tokens and cuts {len(tokens.cut)} of "
                    f"{len(texts)} texts: {shown}"
                )
        ids, mask = self.text.words.side_by_side(found)
        return {"ids": ids, "mask": mask}, told

    def rows(self, batch: int) -> int:
        """The least multiple of the shards of a batch that holds ``batch`` texts."""
        shards = batch_shards(self.mesh)
        return -(-batch // shards) * shards

    @property
    def params(self) -> Params:
        """The weights, on the devices."""
        return place({"text": self.text.weights}, self.mesh)["text"]

    @functools.cached_property
    def made_by(self) -> dict[str, Any]:
        """What tells these encoders from others, as JSON: see ``data.source.Source``."""
        weights = identities({"text": self.text.weights}, self.mesh)["text"]
        return {"encoders": self.text.facts, "weights": weights}

    def compiled(self, rows: int) -> Any:
        """What makes arrays of the tokens of ``rows`` texts."""
        if rows not in self._compiled:
            step = jax.jit(
                functools.partial(embed, self.text, self.mesh),
                out_shardings=replicated(self.mesh),
                compiler_options=compiler.options(self.mesh.devices.flat[0].platform),
            )
            blank, _ = self.tokens([""] * rows)
            self._compiled[rows] = step.lower(self.params, placed(blank, self.mesh)).compile()
        return self._compiled[rows]

    def __call__(self, tokens: Tokens, rows: int) -> dict[str, np.ndarray]:
        """``context``, ``context_mask`` and ``pooled`` of texts, by ``rows`` at a time."""
        count = len(tokens["ids"])
        starts = range(0, count, rows)
        picked = [np.minimum(np.arange(i, i + rows), count - 1) for i in starts]  # the last repeats
        step, parts = self.compiled(rows), []
        for r in picked:
            batch = placed({k: v[r] for k, v in tokens.items()}, self.mesh)
            parts.append(jax.device_get(step(self.params, batch)))
        arrays = {k: np.concatenate([part[k] for part in parts])[:count] for k in parts[0]}
        check(arrays)
        return arrays


def embed(
    text: FrozenText, mesh: Mesh, params: Params, tokens: Mapping[str, Array]
) -> dict[str, Array]:
    """What the encoders together make of one batch of texts; to be jitted."""
    with in_force(mesh):
        encoded = text.encode(params, tokens["ids"], tokens["mask"])
    return {k: x for k, x in vars(encoded).items() if x is not None}


def check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise UserError for numbers that are not finite."""
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise UserError(f"the {name} has values that are not finite: are the weights damaged?")
