"""Text encoders, one a file: from a caption to what a network is conditioned on.

``config.resolve("text", NAME, **keywords)`` gives an encoder, as the section ``text`` of a config asks
for one. A caption goes two steps. Its ``tokenizer`` makes integers of it where an example is read; no
string ever enters a batch. The encoder makes ``Cond.context`` or ``Cond.pooled`` of the integers, or
both. A ``TextEncoder`` is a module whose parameters are trained with the network (``text.network``); the
weights of a ``FrozenText`` are not trained, and are arguments of every program that uses it.

``build`` is given ``dtype``, and ``remat``, ``unroll`` and ``attention`` of the section ``model``, where
it has keywords of these names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dit.types import Params, UserError, Weights


@runtime_checkable
class Tokenizer(Protocol):
    """A pure function of a text, small enough to be sent to every process that reads data.

    ``tokenizer(text) -> (tokens, real)``: ``length`` integers, and which of them stand for the text
    and not for padding. A longer text is cut. The empty text has none: it is no condition at all.
    """

    length: int

    def __call__(
        self, text: str
    ) -> tuple[Int[np.ndarray, " length"], Bool[np.ndarray, " length"]]: ...

    def cut(self, text: str) -> str | None:
        """How much of a text is read, where its end is read by nothing; else None."""


@struct.dataclass
class Encoded:
    """What an encoder makes of a batch of texts: the fields of ``Cond`` with these names."""

    context: Float[Array, "b m e"] | None = None
    context_mask: Bool[Array, "b m"] | None = None
    pooled: Float[Array, "b p"] | None = None


class TextEncoder(nn.Module):
    """A description of an encoder: hashable, without arrays.

    ``context_dim``, ``pooled_dim``: the channels of what it gives, None for what it does not give.
    """

    def __init_subclass__(cls, **kwargs):
        for name in {"tokenizer", "macs", "stream", "plain", "unstack"} & vars(cls).keys():
            nn.nowrap(vars(cls)[name])  # answered from the description alone
        super().__init_subclass__(**kwargs)

    @property
    def context_dim(self) -> int | None:
        """Channels of ``Encoded.context``."""
        raise NotImplementedError

    @property
    def pooled_dim(self) -> int | None:
        """Channels of ``Encoded.pooled``."""
        raise NotImplementedError

    def __call__(self, tokens: Int[Array, "b m"], real: Bool[Array, "b m"] | None) -> Encoded:
        """The texts as the network is told them. Padding changes nothing, however long it is."""
        raise NotImplementedError

    def tokenizer(self) -> Tokenizer:
        """What makes tokens of a text."""
        raise NotImplementedError

    def macs(self, length: int) -> dict[str, int]:
        """Multiply-adds of one text of ``length`` tokens, by part: see ``models.network``."""
        raise NotImplementedError

    def stream(self, length: int) -> int:
        """Elements that pass from layer to layer for one text of ``length`` tokens."""
        return 0

    def plain(self, unrolled: bool = False) -> TextEncoder:
        """See ``models.network``."""
        return self

    def unstack(self, params: Params) -> Params:
        """See ``models.network``."""
        return params


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenText:
    """An encoder that nothing trains, a pure function of its weights.

    ``encode(params, tokens, real)``: what it makes of a batch of texts, of each of which some token is
    real. ``words``: its tokenizer; ``context_dim``, ``pooled_dim``: the channels of what it gives, None
    for what it does not give; ``context_len``: tokens of the context. ``macs``: multiply-adds of one
    text, by part. ``facts``: how it is used, as JSON: with the fingerprint of the weights it decides the
    numbers.
    """

    encode: Callable[[Params, Array, Array], Encoded]
    words: Tokenizer
    weights: Weights
    context_dim: int | None
    pooled_dim: int | None
    context_len: int
    macs: Mapping[str, int]
    facts: list[dict[str, Any]]

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of ``Cond``'s fields."""
        dims = {"context": self.context_dim, "pooled": self.pooled_dim}
        return tuple(name for name, dim in dims.items() if dim is not None)

    def tokenizer(self) -> Tokenizer:
        """What makes tokens of a text."""
        return self.words

    def told(self, params: Params, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with what the encoder gives in place of ``tokens``; without tokens it stays as it is.

        A sample without a single real token has the null condition: ``drop`` is true for it.
        """
        rest = {k: v for k, v in batch.items() if k not in ("tokens", "tokens_mask")}
        if "tokens" not in batch:
            return rest
        tokens, real = batch["tokens"], batch["tokens_mask"]
        lead = tokens.shape[:-1]  # (b,), or the rows of packed samples and their segments
        empty = ~real.any(-1)
        # Of no text all tokens are seen: attention to nothing is not defined.
        texts = (x.reshape(-1, x.shape[-1]) for x in (tokens, real | empty[..., None]))
        encoded = jax.lax.stop_gradient(self.encode(params, *texts))
        given = {
            k: v.reshape(*lead, *v.shape[1:]) for k, v in vars(encoded).items() if v is not None
        }
        return {**rest, **given, "drop": empty | rest["drop"] if "drop" in rest else empty}


def is_told(text: Any, example: Mapping[str, Any]) -> bool:
    """Whether an example holds already what a frozen encoder would make of its caption."""
    return isinstance(text, FrozenText) and all(name in example for name in text.gives)


def check_made_by(text: FrozenText, made_by: Mapping[str, Any] | None) -> None:
    """Raise UserError for encoders that are not used as those that made the data's embeddings.

    ``made_by``: as ``data.source.Source`` has it; None where that is not known.
    """
    if made_by is not None and made_by["encoders"] != text.facts:
        raise UserError(
            f"the data hold embeddings by {made_by['encoders']}; got text.encoders that are used as "
            f"{text.facts}: give the same ones in the same order, or prepare the records again"
        )


def check_prompt(tokenizer: Tokenizer, text: str) -> None:
    """Raise UserError for a text whose end is read by nothing."""
    read = tokenizer.cut(text)
    if read is not None:
        raise UserError(f"got the prompt {text[:60]!r}, which {read}: shorten it")
