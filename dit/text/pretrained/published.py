"""The published text encoders by size alone, for compiling where their files are not at hand.

``dit.preflight --encoders=clip-l,t5-xxl`` puts them in the place of those that a config names. They have
the shapes of the published weights and no weights: ``load`` refuses. Sizes are those of ``config.json``
in the published directories.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from dit.config import call, suggest
from dit.text.pretrained import weights
from dit.text.pretrained.encoder import Encoder, Options
from dit.text.pretrained.tokenizer import Tokens, Vocabulary
from dit.types import UserError

CLIP = {"projection_dim": 768, "hidden_size": 768, "intermediate_size": 3072}
XXL = {
    **{"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "feed_forward_proj": "gated-gelu",
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {  # the file of this room, and its config.json
    "clip-l": ("clip", {**CLIP, "num_hidden_layers": 12, "num_attention_heads": 12}),
    "clip-bigg": (
        "clip",
        {
            **{"projection_dim": 1280, "hidden_size": 1280, "intermediate_size": 5120},
            **{"num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"},
        },
    ),
    "t5-xxl": ("t5", {**XXL, "vocab_size": 32128, "model_type": "t5"}),
    "umt5-xxl": ("t5", {**XXL, "vocab_size": 256384, "model_type": "umt5"}),
}
PROJECTED = ("text_projection.weight",)  # CLIP's pooled vector, where the pipeline's file has it


def build(*, size: str, **options: Any) -> Encoder:
    """The encoder ``size``, one of ``SIZES``, without weights; ``options``: see ``Options``.

    Raises UserError for a size that is not there.
    """
    if size not in SIZES:
        raise UserError(f"no text encoder {size!r}: {suggest(size, list(SIZES))}")
    kind, settings = SIZES[size]
    make = importlib.import_module(f"dit.text.pretrained.{kind}").make
    names = PROJECTED if size == "clip-bigg" else ()  # of CLIP L a map from 768 to 768, left out
    model = make(settings, names, call(Options, f"text {size!r}", **options))
    return Unread(model, Blank(model.vocabulary - 1), {}, weights.text_length(model))


class Unread(Encoder):
    """An ``Encoder`` that has shapes alone."""

    def load(self, shardings: Any | None = None) -> NoReturn:
        """UserError: there is nothing to read."""
        raise UserError(
            "a published size has no weights; give the encoder's own name and path=DIR to run it"
        )


class Blank(Vocabulary):
    """Reads one token, ``end``, in every text."""

    def __init__(self, end: int):
        self.end = end

    def __call__(self, texts: Sequence[str], length: int) -> Tokens:
        """See ``Vocabulary``."""
        ids = np.full((len(texts), length), self.end, np.int32)
        mask = np.zeros(ids.shape, bool)
        mask[:, 0] = True
        return Tokens(ids, mask, [1] * len(texts))
