"""The encoders and their vocabularies against ``transformers``, on random weights and MiniLM's."""

import jax
import numpy as np
import pytest
from text_cases import bpe_files, spiece_file

from dit import config

pytestmark = pytest.mark.torch
LENGTH = 13


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


CLIP = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4)
CLIP |= dict(max_position_embeddings=17, vocab_size=600, bos_token_id=598, projection_dim=10)
T5 = dict(vocab_size=550, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=4)
T5 |= dict(feed_forward_proj="gated-gelu")
BERT = dict(vocab_size=500, hidden_size=24, intermediate_size=40, num_hidden_layers=3)
BERT |= dict(num_attention_heads=4, max_position_embeddings=20)
CASES = {  # name -> kind here, class and config class there, what is in the config
    "clip_l": ("clip", "CLIPTextModel", "CLIPTextConfig", CLIP | dict(eos_token_id=599)),
    "clip_old": ("clip", "CLIPTextModel", "CLIPTextConfig", CLIP | dict(eos_token_id=2)),
    "clip_g": (
        *("clip", "CLIPTextModelWithProjection", "CLIPTextConfig"),
        CLIP | dict(hidden_act="gelu", eos_token_id=599),
    ),
    "t5": ("t5", "T5EncoderModel", "T5Config", T5),
    "t5_plain": ("t5", "T5EncoderModel", "T5Config", T5 | dict(feed_forward_proj="relu")),
    "umt5": ("t5", "UMT5EncoderModel", "UMT5Config", T5),
    "bert": ("bert", "BertModel", "BertConfig", BERT),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, torch, transformers, tmp_path_factory):
    """``(kind, directory, the other model, the names in its file)``, with all weights random."""
    kind, model, settings, given = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    there = getattr(transformers, model)(getattr(transformers, settings)(**given)).eval()
    for name, p in there.named_parameters():  # those too that begin as zeros and ones
        scale = 0.3 if "norm" in name.lower() else 0.1
        p.data = p.data + scale * torch.randn_like(p)
    there.save_pretrained(folder)
    words = {"clip": bpe_files, "t5": spiece_file, "bert": bert_file}[kind]
    words(folder)
    return kind, folder, there


def bert_file(folder):
    """A few words in the layout of ``tokenizer.json``."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle"]
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))


def inputs(kind, there):
    """Numbers of four texts of different lengths; the end is not the highest number in the second."""
    rng = np.random.default_rng(1)
    ids = rng.integers(3, there.config.vocab_size - 2, (4, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH)[None] < np.array([[LENGTH], [3], [8], [1]])
    if kind == "clip":
        end = np.array([LENGTH - 1, 2, 7, 0])
        ids[np.arange(4), end] = there.config.eos_token_id if there.config.eos_token_id > 2 else 599
    return ids, mask


def forward(torch, there, ids, mask):
    with torch.no_grad():
        given = {} if mask is None else {"attention_mask": torch.from_numpy(mask).long()}
        return there(input_ids=torch.from_numpy(ids).long(), output_hidden_states=True, **given)


@pytest.mark.parametrize("padding", ["masked", "real", "zeros"])
def test_states_of_all_layers_and_the_pooled_vector(case, torch, padding):
    kind, folder, there = case
    ids, mask = inputs(kind, there)
    out = forward(torch, there, ids, None if padding == "real" else mask)
    layers = (0, 1, -2)
    encoder = config.resolve(
        "text.pretrained", kind, path=str(folder), layers=(*layers, -1), padding=padding
    )
    found = jax.jit(encoder.encode)(encoder.load(), ids, mask)
    expected = [out.hidden_states[i] for i in layers] + [out.last_hidden_state]
    expected = torch.cat(expected, -1).numpy()
    if padding == "zeros":
        expected = expected * mask[..., None]
    shown = mask if padding == "masked" else np.ones_like(mask)
    np.testing.assert_array_equal(found.context_mask, shown)
    np.testing.assert_allclose(found.context[shown], expected[shown], atol=1e-4, rtol=1e-4)
    if kind == "t5":
        assert found.pooled is None
        return
    if kind == "clip":
        pooled = getattr(out, "text_embeds", None)
        pooled = (out.pooler_output if pooled is None else pooled).numpy()
    else:
        real = (np.ones_like(mask) if padding == "real" else mask)[..., None]
        pooled = (out.last_hidden_state.numpy() * real).sum(1) / real.sum(1)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4, rtol=1e-4)
