"""Directories as ``transformers`` saves them, made at random and small, and a page of awkward text."""

import json
import string

import numpy as np

AWKWARD = (
    "a red circle",
    "",
    " ",
    "  two   spaces \t tabs\nand\r\nlines  ",
    "Ünïcödé ÀÉÎ ñ ß ﬁ Å e\u0301 é",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 and 🇩🇪",
    "日本語とEnglishの混在 Привет мир שלום مرحبا हिन्दी",
    "control \x00 \x07 \x1b[0m zero\u200bwidth \ufeffbom \u202eright",
    "don't it's we'll I'VE they'd",
    "3.14159 1,000,000 ½ Ⅻ ١٢٣",
    "<html> &amp; {json: [1]} --flag=value C:\\path",
    "a photo of a cat, highly-detailed!!! (masterpiece:1.3) [blurry]...",
    "no\u00a0break\u3000wide\u2009thin",
    "ALLCAPS lower MiXeD",
    "long " * 300,
    "unbrokenword" * 40,
)


def write_json(path, content):
    path.write_text(json.dumps(content))


def write_safetensors(path, state):
    names = {"float32": "F32", "float16": "F16", "int64": "I64"}
    header, data = {}, b""
    for name, x in state.items():
        ends = [len(data), len(data) + x.nbytes]
        header[name] = {"dtype": names[str(x.dtype)], "shape": x.shape, "data_offsets": ends}
        data += x.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def random_state(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (
            0.15 * rng.normal(size=shape) + (name.endswith("norm.weight") or "LayerNorm.w" in name)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def bpe_files(folder, end="</w>"):
    """CLIP's files: single bytes, bytes that end a word, a few merges, the start and the end."""
    folder.mkdir(parents=True, exist_ok=True)
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("t", "h"), ("th", f"e{end}"), ("c", "a"), ("ca", f"t{end}"), ("r", "e")]
    merges += [("re", f"d{end}"), ("l", "o"), ("lo", "n"), ("i", "n"), ("in", f"g{end}")]
    tokens = [*letters, *(f"{letter}{end}" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return len(tokens)


def spiece_file(folder, kind="unigram"):
    """A vocabulary of 400 pieces in T5's layout, learned from the awkward page."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    words = [f"the {a}{b} of a red {b}{a} circle" for a in string.ascii_letters for b in "aeiou"]
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*words, *(text for text in AWKWARD if len(text) < 200)]),
            model_writer=file,
            vocab_size=400,
            model_type=kind,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
            num_threads=1,
        )
