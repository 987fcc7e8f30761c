"""Frozen text encoders, several as one: a ``FrozenText`` (SD3: Esser et al. 2024, fig. 2).

The tokens of a text are those of each encoder, one after the other, so that a batch has one array of
them and one mask. Contexts of CLIPs are joined along the channels, then with the others along the
sequence; pooled vectors are joined along the channels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from dit.text import Encoded, FrozenText
from dit.text.pretrained.encoder import Encoder, Words
from dit.text.pretrained.tokenizer import Tokens, Vocabulary
from dit.types import Params, UserError, Weights

PROBE = (  # what vocabularies are told apart by
    "The quick brown fox jumps over the lazy dog",
    "a painting of 3 crows, 17th century (oil on canvas): 100% original!",
    "Ünïcödé, 日本語 & Привет 🙂",
)


@dataclasses.dataclass(frozen=True)
class Reader:
    """The tokenizer of several encoders together; see ``text.Tokenizer``."""

    parts: tuple[Words, ...]

    @property
    def length(self) -> int:
        """Tokens of all encoders."""
        return sum(part.length for part in self.parts)

    def __call__(self, text: str) -> tuple[Int[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
        """See ``Tokenizer``."""
        ids, mask = self.side_by_side(self.read([text]))
        return ids[0], mask[0] & bool(text)

    def read(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each encoder; those of the empty text are real too."""
        return [part(texts) for part in self.parts]

    def side_by_side(
        self, tokens: Sequence[Tokens]
    ) -> tuple[Int[np.ndarray, "b length"], Bool[np.ndarray, "b length"]]:
        """The tokens of each encoder in one array, and in another which are real."""
        ids, mask = zip(*((part.ids, part.mask) for part in tokens), strict=True)
        return np.concatenate(ids, axis=1), np.concatenate(mask, axis=1)

    def cut(self, text: str) -> str | None:
        """See ``Tokenizer``: None where one of the encoders reads the whole text."""
        found = self.read([text])
        if not all(part.cut for part in found):
            return None
        sizes = (
            f"{t.sizes[0]} tokens of {w.length}" for t, w in zip(found, self.parts, strict=True)
        )
        return f"takes {' and '.join(sizes)} that the encoders read (text.encoders, length)"


def joined(encoders: Sequence[Encoder]) -> FrozenText:
    """The encoders as one. Raises UserError for some that cannot be joined, or give nothing."""
    encoders = tuple(encoders)
    reader = Reader(tuple(encoder.words for encoder in encoders))
    encode = functools.partial(_encode, encoders)
    weights = _weights(encoders)
    ids = jax.ShapeDtypeStruct((1, reader.length), jnp.int32)
    real = jax.ShapeDtypeStruct((1, reader.length), jnp.bool_)
    given = jax.eval_shape(lambda *args: vars(encode(*args)), weights.abstract, ids, real)
    context, pooled = given["context"], given["pooled"]
    if context is None and pooled is None:
        raise UserError(
            "the encoders give nothing: a T5 has no pooled vector, leave use=pooled out"
        )
    return FrozenText(
        encode=encode,
        words=reader,
        weights=weights,
        context_dim=None if context is None else context.shape[-1],
        pooled_dim=None if pooled is None else pooled.shape[-1],
        context_len=0 if context is None else context.shape[1],
        macs={
            f"{name}/{part}": count
            for name, encoder in _named(encoders)
            for part, count in encoder.model.macs(encoder.length).items()
        },
        facts=[_facts(encoder) for encoder in encoders],
    )


def _named(encoders: Sequence[Encoder]) -> Iterator[tuple[str, Encoder]]:
    return ((f"encoder_{i}", encoder) for i, encoder in enumerate(encoders))


def _facts(encoder: Encoder) -> dict[str, Any]:
    """How an encoder is used, but for its weights, its vocabulary and the type of its products."""
    options = {k: v for k, v in vars(encoder.model.options).items() if k != "dtype"}
    options |= {"length": encoder.length, "layers": list(encoder.model.options.layers)}
    return {"encoder": type(encoder.model).__name__, **options}


def _encode(
    encoders: Sequence[Encoder],
    params: Params,
    tokens: Int[Array, "b length"],
    real: Bool[Array, "b length"],
) -> Encoded:
    """See ``FrozenText``."""
    groups: dict[bool, list[Encoded]] = {True: [], False: []}
    start = 0
    for name, encoder in _named(encoders):
        own = slice(start, start + encoder.length)
        part = encoder.encode(params[name]["network"], tokens[:, own], real[:, own])
        groups[encoder.model.beside].append(part)
        start += encoder.length
    return join(groups[True], groups[False])


def _weights(encoders: Sequence[Encoder]) -> Weights:
    """The weights of all, and digests of their vocabularies, so that one fingerprint covers both."""
    words = {name: _digest(encoder.vocabulary) for name, encoder in _named(encoders)}
    digest = jax.ShapeDtypeStruct(next(iter(words.values())).shape, jnp.uint32)

    def read(shardings: Any) -> Params:
        return {
            name: {
                "network": encoder.load(shardings[name]["network"]),
                "vocabulary": jax.device_put(words[name], shardings[name]["vocabulary"]),
            }
            for name, encoder in _named(encoders)
        }

    def apart(params: Params) -> Iterator[Params]:
        for name, encoder in _named(encoders):
            yield {name: {"vocabulary": params[name]["vocabulary"]}}
            for tree in encoder.model.apart(params[name]["network"]):
                yield {name: {"network": tree}}

    return Weights(
        abstract={n: {"network": e.abstract(), "vocabulary": digest} for n, e in _named(encoders)},
        axes={n: {"network": e.axes(), "vocabulary": (None,)} for n, e in _named(encoders)},
        read=read,
        where="the weights or the vocabularies of the text encoders (text.encoders)",
        compared="bfloat16",  # the same where products are in float32 and where they are not
        apart=apart,
    )


def _digest(vocabulary: Vocabulary) -> np.ndarray:
    """Of the tokens of some texts: libraries may change how they write vocabularies."""
    ids = vocabulary(PROBE, 64).ids
    return np.frombuffer(hashlib.sha256(ids.astype("<i4").tobytes()).digest(), "<u4")


def join(beside: Sequence[Encoded], after: Sequence[Encoded] = ()) -> Encoded:
    """Several encoders' texts as one context and one pooled vector (SD3: Esser et al. 2024, fig. 2).

    The contexts ``beside`` each other (CLIP) are joined along the channels. They and those ``after``
    them (T5) follow each other along the sequence, the narrower ones filled up with zero channels. The
    pooled vectors are joined along the channels. Raises UserError for contexts beside each other whose
    lengths differ.
    """
    wide = [part for part in beside if part.context is not None]
    lengths = [part.context.shape[1] for part in wide]
    if len(set(lengths)) > 1:
        raise UserError(
            f"got contexts of {lengths} tokens to join along the channels; expected one length: give "
            "these encoders the same length=..."
        )
    sequences = [(part.context, part.context_mask) for part in after if part.context is not None]
    if wide:
        mask = functools.reduce(jnp.logical_or, [part.context_mask for part in wide])
        sequences.insert(0, (jnp.concatenate([part.context for part in wide], axis=-1), mask))
    context = mask = None
    if sequences:
        width = max(x.shape[-1] for x, _ in sequences)
        filled = [jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1]))) for x, _ in sequences]
        context = jnp.concatenate(filled, axis=1)
        mask = jnp.concatenate([mask for _, mask in sequences], axis=1)
    vectors = [part.pooled for part in (*beside, *after) if part.pooled is not None]
    return Encoded(context, mask, jnp.concatenate(vectors, axis=-1) if vectors else None)
