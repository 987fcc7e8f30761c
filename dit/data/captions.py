"""Captions become integers where an example is read, so that no string enters a batch.

An example of a captioned source holds ``caption``: a str, or a list of them, of which one is taken. With
a tokenizer it holds ``tokens`` and ``tokens_mask`` instead, the fields of ``Cond``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dit.data.source import (
    Example,
    Source,
    Split,
    Transform,
    bucket_sizes,
    bucket_weights,
    generator,
)
from dit.types import UserError

Tokenize = Callable[[str], tuple[np.ndarray, np.ndarray]]


def tokenized(source: Source, tokenize: Tokenize) -> Source:
    """The same data with tokens in place of captions. ``tokenize(caption) -> (tokens, real)``."""
    train, held_out = (Tokenized(split, tokenize) for split in (source.train, source.held_out))
    return dataclasses.replace(source, train=train, held_out=held_out)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenized:
    """A split whose examples hold tokens. Asked for by number alone, each has one caption for good."""

    split: Split
    tokenize: Tokenize

    @property
    def fingerprint(self) -> str:
        """That of the split: which tokens stand for a text is part of a run's config."""
        return self.split.fingerprint

    @property
    def streaming(self) -> bool:
        """See ``Split``."""
        return self.split.streaming

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """See ``Split``."""
        return self.split.transforms

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """See ``Split``."""
        return bucket_sizes(self.split)

    @property
    def bucket_weights(self) -> tuple[int, ...]:
        """See ``Split``."""
        return bucket_weights(self.split)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Example:
        return self.read(i, generator(0, "captions", i))

    def read(self, i: int, rng: np.random.Generator) -> Example:
        """Example ``i`` with one of its captions, chosen by ``rng``."""
        example = self.split[i]
        tokens, real = self.tokenize(chosen(example, rng))
        rest = {k: v for k, v in example.items() if k != "caption"}
        return {**rest, "tokens": tokens, "tokens_mask": real}

    def caption(self, i: int) -> str:
        """The caption whose tokens example ``i`` has."""
        return chosen(self.split[i], generator(0, "captions", i))


def chosen(example: Example, rng: np.random.Generator) -> str:
    """The caption of an example, or one of several. Raises UserError where there is none."""
    captions = _captions(example)
    return captions[int(rng.integers(len(captions)))]


def caption_of(split: Split, i: int) -> str:
    """The caption that example ``i`` goes by: the one with its tokens, or else its first."""
    example = split[i]
    return split.caption(i) if "tokens" in example else _captions(example)[0]


def _captions(example: Example) -> Sequence[str]:
    caption = example.get("caption")
    captions = [caption] if isinstance(caption, str) else caption
    if not isinstance(captions, list | tuple) or not captions:
        raise UserError(
            f"got examples with {', '.join(example)} and caption {caption!r}; the text section of the "
            "config needs data with a caption each: take other data, or --config.text.name=none"
        )
    return captions
