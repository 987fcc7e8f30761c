"""Directories in the layout of ``transformers``: settings, weights and vocabulary of a text encoder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dit import config
from dit.interop.folder import read, read_json
from dit.interop.mapping import Entry
from dit.text.pretrained import tokenizer as vocabularies
from dit.text.pretrained.encoder import Encoder, Options, Pretrained
from dit.types import UserError

WHOLE = ("model.safetensors", "pytorch_model.bin")  # each may be in parts, with an index
BUFFERS = ("position_ids",)  # whole numbers from 0, which old files hold beside the weights


def open_encoder(
    kind: str,
    path: str,
    tokenizer: str | None,
    options: Options,
    *,
    make: Callable[..., Pretrained],
    elsewhere: tuple[str, ...],
    pad: str,
) -> Encoder:
    """The encoder in the directory ``path``; its weights are only mapped.

    ``make(settings, names, options)`` describes the network; ``elsewhere``: prefixes of weights that
    are of other parts of the model; ``pad``: the token that pads, if the vocabulary names none. Raises
    UserError for files that are missing or do not go together.
    """
    folder = pathlib.Path(path)
    settings = read_json(folder / "config.json")
    state = {
        name: x
        for name, x in read(folder, WHOLE).items()
        if not name.startswith(elsewhere) and name.rpartition(".")[2] not in BUFFERS
    }
    model = make(settings, state.keys(), options)
    if model.depth > len(state):
        raise UserError(
            f"config.json of {str(folder)!r} says {model.depth} layers; the weights hold {len(state)} "
            "arrays: they belong to different models"
        )
    wrong = [i for i in options.layers if not -model.depth - 1 <= i <= model.depth]
    if wrong:
        raise UserError(
            f"got layers={wrong[0]} for {kind} of {model.depth} layers; expected {-model.depth - 1} to "
            f"{model.depth}: -1 is the last"
        )
    words = vocabularies.read(vocabularies.place(folder, tokenizer), pad)
    return Encoder(model, words, state, text_length(model))


def text_length(model: Pretrained) -> int:
    """Tokens of a text; UserError for more than the network has positions."""
    known, asked = model.positions, model.options.length
    if known is not None and (asked or 0) > known:
        raise UserError(f"got length={asked}; expected at most {known}, its positions")
    usual = min(n for n in (model.usual_length, known) if n is not None)
    return asked or usual


def fields(kind: str, settings: Mapping[str, Any], sizes: Callable[..., dict]) -> dict[str, Any]:
    """What ``sizes`` makes of the settings that it takes; UserError for those that do not fit."""
    known = config.keywords(sizes)
    given = {k: settings[k] for k in known if settings.get(k) is not None}
    return config.call(sizes, f"config.json of {kind}", **given)


def norm(path: str, name: str, layer: int | None = None) -> Iterator[Entry]:
    """The entries of a norm with scale and bias, of one layer where they are stacked."""
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        yield Entry((*path.split("/"), ours), (f"{name}.{theirs}",), layer=layer)
