"""From texts to token numbers, as ``transformers`` has them, by ``tokenizers`` and ``sentencepiece``.

A vocabulary is a directory with ``tokenizer.json``, with ``vocab.json`` and ``merges.txt`` (CLIP), or
with ``spiece.model`` (T5). ``tokenizer_config.json`` or ``special_tokens_map.json`` name the tokens that
pad and end a text: CLIP-L pads with its end token, OpenCLIP bigG with "!".
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from dit.config import fits
from dit.interop.folder import find, read_json
from dit.types import Range, UserError

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
EXTRA, MOST_EXTRA = 100, 1000  # of T5's tokens <extra_id_0>, ... that its vocabulary does not hold
FILES = ("tokenizer.json", "vocab.json", "spiece.model")
# A special token, an English contraction, letters, one digit, or other signs: CLIP's words.
WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokens(NamedTuple):
    """``mask``: true on real tokens, the end's and the start's too. ``sizes``: tokens of whole texts."""

    ids: Int[np.ndarray, "b n"]
    mask: Bool[np.ndarray, "b n"]
    sizes: list[int]

    @property
    def cut(self) -> list[int]:
        """Which texts were cut."""
        return [i for i, size in enumerate(self.sizes) if size > self.ids.shape[1]]


class Vocabulary:
    """Texts to ``length`` tokens each, padded on the right; cut ones keep their end token."""

    def __call__(self, texts: Sequence[str], length: int) -> Tokens:
        """Raises UserError for a text that is not Unicode."""
        raise NotImplementedError


def place(folder: pathlib.Path, tokenizer: str | None) -> pathlib.Path:
    """Where the vocabulary of the weights in ``folder`` is.

    ``tokenizer`` if given, else ``folder``, else the directory that goes with ``folder`` where a
    pipeline of ``diffusers`` is: ``tokenizer_2`` with ``text_encoder_2``.
    """
    if tokenizer is not None:
        return pathlib.Path(tokenizer)
    whole = folder.resolve()
    beside = whole.with_name(whole.name.replace("text_encoder", "tokenizer"))
    here = any((folder / name).exists() for name in FILES)
    return folder if here or not beside.is_dir() else beside


def read(folder: pathlib.Path, pad: str) -> Vocabulary:
    """The tokenizer of a vocabulary; ``pad``: the token that pads, if no file there names it.

    Raises UserError where there is none or it is damaged, and without the libraries.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if not there:
        raise UserError(
            f"no vocabulary in {str(folder)!r}; expected tokenizer.json, vocab.json with merges.txt, or "
            "spiece.model there, or tokenizer=DIR for another directory"
        )
    special = {"pad_token": pad} | _special(folder)
    try:
        if there[0] == "spiece.model":
            return _sentencepiece(folder / "spiece.model", special)
        return _fast(folder, special, there[0])
    except UserError:
        raise
    except Exception as error:  # the libraries raise Exception itself
        raise UserError(f"cannot read the vocabulary in {str(folder)!r}: {error}") from error


def _special(folder: pathlib.Path) -> dict[str, Any]:
    """The special tokens that the files beside a vocabulary name, by their role, and ``extra_ids``."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the latter decides
        given = read_json(folder / name) if (folder / name).exists() else {}
        for role in ROLES:
            token = given.get(role)
            if isinstance(token, str) or (isinstance(token, dict) and "content" in token):
                found[role] = token
        if fits(given.get("extra_ids"), Annotated[int, Range(0, MOST_EXTRA)]):
            found["extra_ids"] = given["extra_ids"]
    return found


def _text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _fast(folder: pathlib.Path, special: Mapping[str, Any], file: str) -> Vocabulary:
    """The tokenizer of ``tokenizer.json`` or of ``vocab.json`` and ``merges.txt``."""
    library = _library("tokenizers")
    if file == "tokenizer.json":
        tokenizer = library.Tokenizer.from_file(str(folder / file))
    else:
        tokenizer = _clip(library, folder, special)
    given = [token for role, token in special.items() if role in ROLES]
    known = [token for token in given if tokenizer.token_to_id(_text(token)) is not None]
    tokenizer.add_special_tokens([_added(library, token) for token in known])
    tokenizer.no_padding()
    pad = tokenizer.token_to_id(_text(special["pad_token"]))
    if pad is None:
        raise UserError(f"{str(folder)!r} has no token {_text(special['pad_token'])!r}, which pads")
    return Fast(tokenizer, pad)


def _added(library: ModuleType, token: str | Mapping[str, Any]) -> Any:
    flags = ("lstrip", "rstrip", "normalized", "single_word")
    given = {} if isinstance(token, str) else {k: bool(token[k]) for k in flags if k in token}
    return library.AddedToken(_text(token), special=True, **given)


def _clip(library: ModuleType, folder: pathlib.Path, special: Mapping[str, Any]) -> Any:
    """CLIP's vocabulary: words in small letters, as bytes, merged in pairs; a start and an end."""
    start, end = (
        _text(special.get(role, token))
        for role, token in (("bos_token", "<|startoftext|>"), ("eos_token", "<|endoftext|>"))
    )
    merges = find(folder, "merges.txt")
    model = library.models.BPE.from_file(
        str(folder / "vocab.json"),
        str(merges),
        unk_token=_text(special.get("unk_token", end)),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
    )
    tokenizer = library.Tokenizer(model)
    normal, before = library.normalizers, library.pre_tokenizers
    spaces = normal.Replace(library.Regex(r"\s+"), " ")
    tokenizer.normalizer = normal.Sequence([normal.NFC(), spaces, normal.Lowercase()])
    words = before.Split(library.Regex(WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = before.Sequence([words, before.ByteLevel(add_prefix_space=False)])
    ends = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    missing = [token for token, number in ends if number is None]
    if missing:
        raise UserError(f"{str(folder)!r} has no token {missing[0]!r}, which CLIP needs")
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=ends
    )
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Fast(Vocabulary):
    """A ``Vocabulary`` of the library ``tokenizers``."""

    tokenizer: Any
    pad: int

    def __call__(self, texts: Sequence[str], length: int) -> Tokens:
        """See ``Vocabulary``."""
        texts = _unicode(texts)
        if (self.tokenizer.truncation or {}).get("max_length") != length:  # not while others read
            self.tokenizer.enable_truncation(length)
        one = len(texts) == 1  # where data are read: without threads of its own
        found = map(self.tokenizer.encode, texts) if one else self.tokenizer.encode_batch(texts)
        ends = self.tokenizer.num_special_tokens_to_add(False)
        rows, sizes = [], []
        for text in found:
            parts = [text, *text.overflowing]  # each between the tokens that begin and end a text
            rows.append(text.ids)
            sizes.append(sum(len(part.ids) for part in parts) - ends * len(text.overflowing))
        return _padded(rows, length, self.pad, sizes)


def _sentencepiece(file: pathlib.Path, special: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of ``spiece.model``."""
    model = _library("sentencepiece").SentencePieceProcessor(model_file=str(file))
    pad, end = (
        model.piece_to_id(_text(special.get(role, token)))
        for role, token in (("pad_token", "<pad>"), ("eos_token", "</s>"))
    )
    size = model.get_piece_size()
    named = {model.id_to_piece(i): i for i in range(size) if model.is_control(i)}
    named |= {model.id_to_piece(model.unk_id()): model.unk_id()}
    extra = special.get("extra_ids", EXTRA)  # after the vocabulary, the last one first
    named |= {f"<extra_id_{i}>": size + extra - 1 - i for i in range(extra)}
    return Pieces(model, pad, end, named)


@dataclasses.dataclass(frozen=True)
class Pieces(Vocabulary):
    """A ``Vocabulary`` of the library ``sentencepiece``. ``named``: tokens that a text may spell out."""

    model: Any
    pad: int
    end: int
    named: Mapping[str, int]

    def __call__(self, texts: Sequence[str], length: int) -> Tokens:
        """See ``Vocabulary``."""
        found = [self._ids(text) for text in _unicode(texts)]
        rows = [[*ids[: length - 1], self.end] for ids in found]
        return _padded(rows, length, self.pad, [len(ids) + 1 for ids in found])

    def _ids(self, text: str) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, self.named))})", text)
        nested = (self._part(part) for part in parts if part)
        return [i for ids in nested for i in ids]

    def _part(self, part: str) -> list[int]:
        return [self.named[part]] if part in self.named else self.model.encode(part)


def _padded(rows: Sequence[Sequence[int]], length: int, pad: int, sizes: list[int]) -> Tokens:
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return Tokens(ids, mask, sizes)


def _unicode(texts: Sequence[str]) -> list[str]:
    """The texts; UserError for one with half a surrogate pair, as from a file in another encoding."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"got the text {text[:80]!r}; expected Unicode in UTF-8") from error
    return list(texts)


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"this vocabulary is read by {name}, which is not installed: pip install 'dit-jax[text]'"
        ) from error
