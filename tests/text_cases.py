"""Small random encoders in the layout of ``transformers``, and a page of awkward text."""

import string

import jax
import jax.numpy as jnp
import numpy as np
from weights_files import write_json, write_safetensors

from dit.interop import mapping
from dit.text.pretrained import bert, clip, t5
from dit.text.pretrained.encoder import Options

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
CLIP = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 17, "vocab_size": 600},
    **{"bos_token_id": 598, "eos_token_id": 599, "projection_dim": 10},
}
T5 = {
    **{"vocab_size": 550, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_heads": 4},
    "feed_forward_proj": "gated-gelu",
}
BERT = {
    **{"vocab_size": 500, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 20},
}
KINDS = {"clip": (clip, CLIP), "t5": (t5, T5), "umt5": (t5, T5), "bert": (bert, BERT)}


def save(folder, name, prefix="", projected=False, seed=0):
    """A directory with an encoder of ``KINDS`` in it; its state."""
    room, settings = KINDS[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**settings, "model_type": name})
    names = [f"{prefix}x"] + ["text_projection.weight"] * projected
    extra = {"pool": "mean", "unit": False} if name == "bert" else {}
    model = room.make({**settings, "model_type": name}, names, Options(), **extra)
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, None)["params"]
    rng = np.random.default_rng(seed)

    def drawn(box):
        x = 0.15 * rng.normal(size=box.value.shape) + (box.names[-1:] == ("norm",))
        return x.astype(np.float32)

    params = jax.tree.map(drawn, shapes, is_leaf=lambda x: hasattr(x, "names"))
    state = mapping.to_state(params, list(model.entries(names)))
    write_safetensors(folder / "model.safetensors", state)
    {"clip": bpe_files, "bert": bert_file}.get(name, spiece_file)(folder)
    return state


def bpe_files(folder):
    """CLIP's files: single bytes, bytes that end a word, a few merges, the start and the end."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters, last = sorted(ByteLevel.alphabet()), "</w>"
    merges = [("t", "h"), ("th", f"e{last}"), ("c", "a"), ("ca", f"t{last}"), ("r", "e")]
    merges += [("re", f"d{last}"), ("l", "o"), ("lo", "n"), ("i", "n"), ("in", f"g{last}")]
    tokens = [*letters, *(f"{letter}{last}" for letter in letters), *map("".join, merges)]
    tokens += [f"unused{i}" for i in range(598 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def spiece_file(folder):
    """At most 400 pieces in T5's layout, learned from the awkward page among others."""
    import sentencepiece

    words = [f"the {a}{b} of a red {b}{a} circle" for a in string.ascii_letters for b in "aeiou"]
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*words, *(text for text in AWKWARD if len(text) < 200)]),
            model_writer=file,
            vocab_size=400,
            **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
            **{"hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1},
        )


def bert_file(folder):
    """A few words in ``tokenizer.json``, between a token that begins a text and one that ends it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    made.save(str(folder / "tokenizer.json"))
