"""The encoders and their vocabularies against ``transformers``, on random weights and MiniLM's."""

import jax
import numpy as np
import pytest
from text_cases import AWKWARD, BERT, CLIP, T5, bert_file, bpe_files, save, spiece_file

from dit import config
from dit.text.pretrained import minilm, t5, tokenizer

pytestmark = pytest.mark.torch
LENGTH = 13


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


CASES = {  # name -> kind here, class and config class there, what is in the config
    "clip_l": ("clip", "CLIPTextModel", "CLIPTextConfig", CLIP | {"eos_token_id": 599}),
    "clip_old": ("clip", "CLIPTextModel", "CLIPTextConfig", CLIP | {"eos_token_id": 2}),
    "clip_g": (
        *("clip", "CLIPTextModelWithProjection", "CLIPTextConfig"),
        CLIP | {"hidden_act": "gelu", "eos_token_id": 400},
    ),
    "t5": ("t5", "T5EncoderModel", "T5Config", T5),
    "t5_plain": ("t5", "T5EncoderModel", "T5Config", T5 | {"feed_forward_proj": "relu"}),
    "umt5": ("t5", "UMT5EncoderModel", "UMT5Config", T5),
    "bert": ("bert", "BertModel", "BertConfig", BERT),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, torch, transformers, tmp_path_factory):
    """``(kind, directory, the other model)``, with all weights random."""
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


def inputs(kind, there):
    """Numbers of four texts of different lengths; of CLIP's ends some are not the highest number."""
    ids = np.random.default_rng(1).integers(3, there.config.vocab_size - 2, (4, LENGTH), np.int32)
    lengths = np.array([LENGTH, 3, 8, 1])
    if kind == "clip":
        end = there.config.eos_token_id if there.config.eos_token_id > 2 else 599
        ids[ids == end] = 5
        ids[np.arange(4), lengths - 1] = end
    return ids, np.arange(LENGTH)[None] < lengths[:, None]


def forward(torch, there, ids, mask):
    with torch.no_grad():
        given = {} if mask is None else {"attention_mask": torch.from_numpy(mask).long()}
        return there(input_ids=torch.from_numpy(ids).long(), output_hidden_states=True, **given)


@pytest.mark.parametrize("padding", ["masked", "real"])
def test_states_of_all_layers_and_the_pooled_vector(case, torch, padding):
    kind, folder, there = case
    ids, mask = inputs(kind, there)
    out = forward(torch, there, ids, None if padding == "real" else mask)
    layers = (0, 1, -2)
    encoder = config.resolve(
        "text.pretrained", kind, path=str(folder), layers=(*layers, -1), padding=padding
    )
    params = encoder.load()
    again, state = encoder.to_state(params), there.state_dict()
    assert set(again) == set(state) - {"encoder.embed_tokens.weight"} or set(again) == set(state)
    for name, x in again.items():
        np.testing.assert_array_equal(x, state[name].numpy(), err_msg=name)
    found = jax.jit(encoder.encode)(params, ids, mask)
    expected = [out.hidden_states[i] for i in layers] + [out.last_hidden_state]
    expected = torch.cat(expected, -1).numpy()
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


def test_files_of_torch_hold_the_same(torch, transformers, tmp_path):
    """As older directories have them, T5 v1.1's among them."""
    save(tmp_path, "t5")
    state = opened_state(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = {name: torch.from_numpy(x.copy()) for name, x in state.items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    again = opened_state(tmp_path)
    assert set(again) == set(state)
    for name, x in state.items():
        np.testing.assert_array_equal(again[name], x)


def opened_state(folder):
    encoder = config.resolve("text.pretrained", "t5", path=str(folder))
    return encoder.to_state(encoder.load())


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 100), (16, 40), (8, 200)])
def test_buckets_of_distances(transformers, torch, buckets, distance):
    n = 700
    offset = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    module = transformers.models.t5.modeling_t5.T5Attention
    wanted = module._relative_position_bucket(offset, True, buckets, distance)
    np.testing.assert_array_equal(t5.bucket(n, buckets, distance), wanted.numpy())


def same_words(words, there, length, texts=AWKWARD):
    found = words(texts, length)
    wanted = there(list(texts), padding="max_length", truncation=True, max_length=length)
    for i, text in enumerate(texts):
        assert found.ids[i].tolist() == wanted["input_ids"][i], text
        assert found.mask[i].tolist() == [bool(x) for x in wanted["attention_mask"][i]], text
    full = there(list(texts))["input_ids"]
    assert found.cut == [i for i, ids in enumerate(full) if len(ids) > length]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("whole", [False, True])
def test_clip_words(transformers, tmp_path, pad, whole):
    bpe_files(tmp_path)
    there = transformers.CLIPTokenizer.from_pretrained(tmp_path, pad_token=pad)
    there.save_pretrained(tmp_path)  # tokenizer.json and tokenizer_config.json
    (tmp_path / "tokenizer.json").rename(tmp_path / ("tokenizer.json" if whole else "unread"))
    texts = (*AWKWARD, "hello!", "!!", "<|endoftext|> in <|startoftext|> it", "<|EndOfText|>")
    same_words(tokenizer.read(tmp_path, "<|endoftext|>"), there, 77, texts)


@pytest.mark.parametrize("whole", [False, True])
def test_t5_words(transformers, tmp_path, whole):
    spiece_file(tmp_path)
    there = transformers.T5Tokenizer.from_pretrained(tmp_path)
    if whole:  # tokenizer.json, which is preferred
        there.save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.json").exists()
    texts = (
        *AWKWARD,
        "a </s>b<pad>",
        "<unk> c",
        "<extra_id_0> the<extra_id_99>red",
        "<extra_id_100>",
    )
    for length in (40, 256):
        same_words(tokenizer.read(tmp_path, "<pad>"), there, length, texts)


def test_minilm_words_and_states(transformers, torch):
    encoder = config.resolve("text.pretrained", "minilm", length=40, layers=(-2, -1))
    there = transformers.AutoTokenizer.from_pretrained(minilm.folder())
    texts = (*AWKWARD, "[SEP] in [MASK] it", "[sep]")
    same_words(encoder.vocabulary, there, 40, texts)
    other = transformers.BertModel.from_pretrained(minilm.folder()).eval()
    ids, mask, _ = encoder.tokens(AWKWARD)
    found = jax.jit(encoder.encode)(encoder.load(), ids, mask)
    out = forward(torch, other, ids, mask)
    expected = torch.cat([out.hidden_states[-2], out.hidden_states[-1]], -1).numpy()
    np.testing.assert_allclose(found.context[mask], expected[mask], atol=1e-4)
    mean = (expected[..., 384:] * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found.pooled, unit, atol=1e-5)
