"""Frozen text encoders: their files, their padding and layers, and how they are joined."""

import json
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_cases import KINDS, save, write_json, write_safetensors

from dit import config
from dit.models import count_params
from dit.parallel.frozen import identities
from dit.text import Encoded
from dit.text.pretrained import clip, t5
from dit.text.pretrained.encoder import Options
from dit.text.pretrained.joint import join
from dit.text.pretrained.layers import chain, choose
from dit.types import UserError

pytest.importorskip("tokenizers", reason="needs the extra 'text'")
pytest.importorskip("sentencepiece", reason="needs the extra 'text'")
TEXTS = ("a red circle", "", "x")
ROOM = "text.pretrained"


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """``(name in the room, directory, state)`` of a small random encoder."""
    folder = tmp_path_factory.mktemp(request.param)
    state = save(folder, request.param)
    return KINDS[request.param][0].__name__.rpartition(".")[2], folder, state


def opened(kind, folder, **options):
    return config.resolve(ROOM, kind, path=str(folder), **options)


def encoded(encoder, texts=TEXTS):
    tokens = encoder.tokens(texts)
    return jax.jit(encoder.encode)(encoder.load(), tokens.ids, tokens.mask)


def test_weights_come_in_and_go_out_unchanged(saved):
    kind, folder, state = saved
    encoder = opened(kind, folder)
    again = encoder.to_state(encoder.load())
    assert set(again) == set(state)
    for name, x in state.items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)


def test_padding_is_not_seen_unless_it_counts_as_text(saved):
    kind, folder, _ = saved
    short, long, seen = (
        encoded(opened(kind, folder, length=length, padding=padding))
        for length, padding in ((12, "masked"), (17, "masked"), (12, "real"))
    )
    real = np.asarray(short.context_mask)
    assert not real.all(1).any()
    np.testing.assert_allclose(short.context[real], long.context[:, :12][real], atol=1e-5)
    if short.pooled is not None:
        np.testing.assert_allclose(short.pooled, long.pooled, atol=1e-5)
    assert seen.context_mask.all()
    change = np.abs(seen.context - short.context)[real].max()
    assert (change > 1e-3) == (kind != "clip")  # where no token sees a later one


def test_halves_are_near_whole_numbers_and_padding_may_be_zeros(tmp_path):
    save(tmp_path, "t5")
    whole, half = (
        opened("t5", tmp_path, length=12, padding="zeros", dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    kept = {str(x.dtype) for x in jax.tree.leaves(half.load())}
    assert kept == {"float32", "bfloat16"}  # norms, and what products are made with
    a, b = encoded(whole), encoded(half)
    assert b.context.dtype == jnp.float32
    assert 1e-4 < np.abs(a.context - b.context).max() < 0.15
    real = whole.tokens(TEXTS).mask
    assert a.context_mask.all()
    assert not np.asarray(a.context)[~real].any()
    assert np.asarray(a.context)[real].all()


@pytest.mark.parametrize("norm", [None, True, False])
def test_layers_are_those_asked_for(norm):
    states = {i: jnp.full((1, 2, 1), float(i)) for i in range(4)}
    layers = (0, -2, 3, -1)
    plain, normed = [0, 2, 3, 3], [100, 102, 103, 103]
    expected = {None: [0, 2, 103, 103], True: normed, False: plain}[norm]
    found = choose(states, layers, norm, lambda x: x + 100)
    np.testing.assert_array_equal(found, np.tile(np.float32(expected), (1, 2, 1)))


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("clip", "b3810639e3bf"),
        ("t5", "5b795352584e"),
        ("umt5", "4d69efb3342d"),
        ("bert", "043a4be1e271"),
    ],
)
def test_old_runs_and_records_know_their_encoders(kind, known, tmp_path):
    """The fingerprints that were given when every layer had parameters of its own."""
    state = {
        name: np.random.default_rng(zlib.crc32(name.encode())).normal(size=x.shape)
        for name, x in save(tmp_path, kind).items()
    }
    write_safetensors(
        tmp_path / "model.safetensors", {n: x.astype(np.float32) for n, x in state.items()}
    )
    room = KINDS[kind][0].__name__.rpartition(".")[2]
    given = ({"name": room, "path": str(tmp_path)},)
    text = config.resolve("text", "pretrained", encoders=given)
    assert identities({"text": text.weights}, None) == {"text": known}


class Twice(nn.Module):
    """``2 x + w + y``."""

    @nn.compact
    def __call__(self, x, y):
        return 2 * x + self.param("w", nn.initializers.ones, (1, 1, 1)) + y


class Chain(nn.Module):
    """Everything that ``chain`` keeps."""

    depth: int
    layers: tuple[int, ...]

    @nn.compact
    def __call__(self, x, y):
        return chain(Twice(name="blocks"), self.depth, x, (y,), self.layers)


def test_a_chain_keeps_the_states_asked_for_alone_and_is_one_loop():
    x, params = jnp.ones((1, 2, 1)), {"blocks": {"w": jnp.arange(5.0).reshape(5, 1, 1, 1)}}
    want = [1.0]
    for i in range(5):
        want.append(2 * want[-1] + i + 3)
    for layers, kept in (((-1,), {5}), ((0, -2, 2), {0, 2, 4, 5}), ((-6, 5), {0, 5})):
        found = Chain(5, layers).apply({"params": params}, x, jnp.float32(3.0))
        assert set(found) == kept
        for count, state in found.items():
            np.testing.assert_array_equal(state, np.full((1, 2, 1), want[count], np.float32))
    assert count_primitives(5) == count_primitives(50)


def count_primitives(depth):
    """Lines of the program of a chain."""
    params = {"blocks": {"w": jnp.ones((depth, 1, 1, 1))}}
    x = jnp.ones((1, 2, 1))
    model = Chain(depth, (-2,))
    made = jax.jit(model.apply).lower({"params": params}, x, jnp.float32(1.0)).as_text()
    return len(made.splitlines())


def test_layers_that_are_not_there_are_refused(saved):
    kind, folder, _ = saved
    with pytest.raises(UserError, match=r"got layers=3 .* expected -3 to 2"):
        opened(kind, folder, layers=(1, 3))
    with pytest.raises(UserError, match=r"got layers=\(\)"):
        opened(kind, folder, layers=())


def test_several_files_old_names_and_the_rest_of_the_model(tmp_path):
    """All of these hold the same encoder."""
    state = save(tmp_path / "one", "clip", projected=True)
    want = encoded(opened("clip", tmp_path / "one"))
    old = {n if n.startswith("text_proj") else f"text_model.{n}": x for n, x in state.items()}
    old["text_model.embeddings.position_ids"] = np.arange(17)[None]
    old |= {"vision_model.x": np.ones(3, np.float32), "logit_scale": np.ones((), np.float32)}
    folder = tmp_path / "text_encoder_2"
    save(folder, "clip")
    (folder / "model.safetensors").unlink()
    parts = [dict(list(old.items())[i::2]) for i in (0, 1)]
    files = {}
    for i, part in enumerate(parts):
        write_safetensors(folder / f"model-{i}.safetensors", part)
        files |= dict.fromkeys(part, f"model-{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    write_json(index, {"weight_map": files})
    settings = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {"model_type": "clip", "text_config": settings})
    (tmp_path / "tokenizer_2").mkdir()  # as diffusers lays a pipeline out
    for name in ("vocab.json", "merges.txt"):
        (folder / name).rename(tmp_path / "tokenizer_2" / name)
    encoder = opened("clip", folder)
    got = encoded(encoder)
    np.testing.assert_array_equal(got.context, want.context)
    np.testing.assert_array_equal(got.pooled, want.pooled)
    again = encoder.to_state(encoder.load())
    assert set(again) == {n for n in old if n.startswith("text_") and "position_ids" not in n}
    write_json(index, {"weight_map": {**files, "x": "model-0.safetensors"}})
    with pytest.raises(UserError, match="differ in 1 names, such as 'x'"):
        opened("clip", folder)
    write_json(index, {"weight_map": {"x": "../one/model.safetensors"}})
    with pytest.raises(UserError, match="weight_map of names to files beside it"):
        opened("clip", folder)


def test_the_two_names_of_one_table_and_the_decoder_of_a_whole_t5(tmp_path):
    state = save(tmp_path, "t5")
    table = state["shared.weight"]
    more = {"encoder.embed_tokens.weight": table, "decoder.x": table, "lm_head.weight": table}
    write_safetensors(tmp_path / "model.safetensors", {**state, **more})
    encoder = opened("t5", tmp_path)
    assert set(encoder.to_state(encoder.load())) == {*state, "encoder.embed_tokens.weight"}
    more["encoder.embed_tokens.weight"] = table + 1
    write_safetensors(tmp_path / "model.safetensors", {**state, **more})
    with pytest.raises(UserError, match="its copies differ"):
        opened("t5", tmp_path).load()


def test_weights_that_do_not_fit_are_named(saved, tmp_path):
    kind, folder, state = saved
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    name, *_, last = sorted(n for n in state if "norm" not in n.lower())
    for changed, message in (
        (
            {n: x for n, x in state.items() if n != name},
            f"missing .*{name}.* .1 in all.*config.json",
        ),
        ({**state, "more.weight": state[name]}, r"not used \['more.weight'\] \(1 in all\)"),
        (
            {**state, last: np.zeros((3, 7), np.float32)},
            r"(has shape \(3, 7\)|is not shaped like .*)[:;] it does not fit the model",
        ),
    ):
        write_safetensors(tmp_path / "model.safetensors", changed)
        with pytest.raises(UserError, match=message):
            opened(kind, tmp_path).load()


def test_buckets_are_single_near_by_and_wider_far_away():
    found = t5.bucket(300, 32, 128)
    assert found[0, :8].tolist() == [0, 17, 18, 19, 20, 21, 22, 23]
    assert found[7, 7::-1].tolist() == list(range(8))
    assert (found[0, 128:] == 31).all()
    assert (found[299, :171] == 15).all()
    assert sorted(set(found.flat)) == [*range(16), *range(17, 32)]


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}
XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


@pytest.mark.parametrize(
    ("room", "settings", "depth", "names", "count"),
    [
        (clip, CLIP_L, 12, [], 123_060_480),
        (clip, CLIP_G, 32, ["text_projection.weight"], 694_659_840),
        (t5, XXL | {"vocab_size": 32128}, 24, [], 4_762_310_656),
        (t5, XXL | {"vocab_size": 256384, "model_type": "umt5"}, 24, [], 5_680_910_336),
    ],
)
def test_published_encoders_have_their_numbers_of_parameters(room, settings, depth, names, count):
    def parameters(layers):
        key = "num_layers" if room is t5 else "num_hidden_layers"
        projected = {"projection_dim": settings.get("hidden_size"), key: layers}
        model = room.make(settings | projected, names, Options())
        ids = jnp.zeros((1, 2), jnp.int32)
        return count_params(jax.eval_shape(model.init, jax.random.key(0), ids, None))

    one = parameters(1)
    assert one + (depth - 1) * (parameters(2) - one) == count


def test_join_is_that_of_stable_diffusion_3():
    rng = np.random.default_rng(0)

    def made(n, e, p):
        mask = jnp.arange(n)[None] < jnp.array([[n], [2]])
        context = jnp.asarray(rng.normal(size=(2, n, e)), jnp.float32)
        return Encoded(context, mask, None if p is None else context[:, 0, :p])

    small, large, last = made(5, 3, 3), made(5, 4, 4), made(6, 9, None)
    joined = join([small, large], [last])
    assert joined.context.shape == (2, 11, 9)
    np.testing.assert_array_equal(joined.context[:, :5, :3], small.context)
    np.testing.assert_array_equal(joined.context[:, :5, 3:7], large.context)
    assert not joined.context[:, :5, 7:].any()
    np.testing.assert_array_equal(joined.context[:, 5:], last.context)
    np.testing.assert_array_equal(joined.context_mask[1], [1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(joined.pooled, np.concatenate([small.pooled, large.pooled], 1))
    jax.tree.map(np.testing.assert_array_equal, join([small]), small)
    jax.tree.map(np.testing.assert_array_equal, join([], [last]), last)
    flux = join([small.replace(context=None, context_mask=None)], [last])
    np.testing.assert_array_equal(flux.context, last.context)
    np.testing.assert_array_equal(flux.pooled, small.pooled)
    with pytest.raises(UserError, match=r"contexts of \[5, 6\] tokens"):
        join([small, made(6, 3, 3)])
