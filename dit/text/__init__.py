"""Text encoders, one a file: from a caption to what a network is conditioned on.

``config.resolve("text", NAME, **keywords)`` gives a ``TextEncoder``, as the section ``text`` of a config
asks for one. A caption goes two steps. Its ``tokenizer`` makes integers of it where an example is read;
no string ever enters a batch. The encoder, a module whose parameters are trained with the network
(``text.network``), makes ``Cond.context`` or ``Cond.pooled`` of the integers, or both.

``build`` is given ``dtype``, and ``remat``, ``unroll`` and ``attention`` of the section ``model``, where
it has keywords of these names.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import flax.linen as nn
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dit.types import Params, UserError


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

    def size(self, text: str) -> int:
        """How many tokens the whole text takes."""


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


def check_prompt(tokenizer: Tokenizer, text: str) -> None:
    """Raise UserError for a text of which the encoder would read only the beginning."""
    size = tokenizer.size(text)
    if size > tokenizer.length:
        raise UserError(
            f"got the prompt {text[:60]!r}, which takes {size} tokens; this model reads "
            f"{tokenizer.length} (text.length): shorten it"
        )
