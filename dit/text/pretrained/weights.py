"""Directories in the layout of ``transformers``: settings, weights and vocabulary of a text encoder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dit import config
from dit.interop import files
from dit.interop.mapping import Entry, State
from dit.text.pretrained import tokenizer as vocabularies
from dit.text.pretrained.encoder import Encoder, Options, Pretrained
from dit.text.pretrained.folder import find, read_json
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
        for name, x in read(folder).items()
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


def read(folder: pathlib.Path) -> State:
    """The weights in a directory, of one file or of several with an index, mapped where they can be."""
    for name in WHOLE:
        if (folder / name).exists():
            return dict(files.read(folder / name))
        if (folder / f"{name}.index.json").exists():
            return _parts(folder / f"{name}.index.json")
    return dict(files.read(find(folder, WHOLE[0])))


def _parts(file: pathlib.Path) -> State:
    """The weights of the files that an index names."""
    index = read_json(file).get("weight_map")
    named = isinstance(index, dict) and all(isinstance(name, str) for name in index.values())
    if not named or any(pathlib.Path(name).name != name for name in index.values()):
        raise UserError(f"{str(file)!r} has no weight_map of names to files beside it")
    state: State = {}
    for name in sorted(set(index.values())):
        state |= files.read(find(file.parent, name))
    differ = sorted(set(index) ^ set(state))
    if differ:
        raise UserError(
            f"{str(file)!r} and the files that it names differ in {len(differ)} names, such as "
            f"{differ[0]!r}: is a file missing, or of another model?"
        )
    return state


def fields(kind: str, settings: Mapping[str, Any], sizes: Callable[..., dict]) -> dict[str, Any]:
    """What ``sizes`` makes of the settings that it takes; UserError for those that do not fit."""
    known = config.keywords(sizes)
    given = {k: settings[k] for k in known if settings.get(k) is not None}
    return config.call(sizes, f"config.json of {kind}", **given)


def norm(path: str, name: str) -> Iterator[Entry]:
    """The entries of a norm with scale and bias."""
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        yield Entry((*path.split("/"), ours), (f"{name}.{theirs}",))
