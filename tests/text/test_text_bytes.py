"""From a caption to the loss: bytes, tokens in batches, the encoder, and each block told of it."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from captions import WORDS, installed, told
from random_params import random_params

from dit import config as configs
from dit import models, rng
from dit.data import pipeline
from dit.data.captions import Tokenized
from dit.experiment import build
from dit.sections import complete, override
from dit.text import check_prompt
from dit.text.bytes import BEGIN, END, PAD, Bytes
from dit.text.network import TextConditioned
from dit.training.step import objective
from dit.training.transfer import Transfer, rate_multipliers, ratios
from dit.types import Cond, UserError

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BLOCKS = configs.names("models.blocks")
SHAPE = (1, 4, 4, 1)
AWKWARD = ("a red circle", "ROT  rot\n", "né", "🟥🟦", "\x00\u200b", "\ud800", "מעגל אדום")


@pytest.fixture(scope="module", autouse=True)
def captioned():
    with installed():
        yield


def quick(function):
    """``jax.jit`` for programs that run once."""
    return jax.jit(function, compiler_options=QUICK)


@functools.cache
def network(block, gives="context", **more):
    text = configs.resolve("text", **{**WORDS, "gives": gives})
    told = {"context_dim": text.context_dim, "pooled_dim": text.pooled_dim}
    sizes = {"depth": 1, "width": 16, "heads": 2, "in_channels": 1, **more}
    return TextConditioned(text, configs.resolve("models", "dit", block=block, **told, **sizes))


@functools.cache
def params_of(model):
    return random_params(lambda key: models.init(model, key, SHAPE))


@functools.cache
def applied(model):
    return quick(models.apply_fn(model))


def tokens(*texts, length=WORDS["length"]):
    read = [Bytes(length)(text) for text in texts]
    return {
        "tokens": jnp.asarray(np.stack([t for t, _ in read])),
        "tokens_mask": jnp.asarray(np.stack([real for _, real in read])),
    }


def data(n):
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.standard_normal((n, *SHAPE)), jnp.float32), jnp.linspace(0.2, 0.8, n)


@pytest.mark.parametrize("text", AWKWARD)
def test_bytes_begin_and_end_and_are_those_of_the_text(text):
    ids, real = Bytes(40)(text)
    size = len(text.encode(errors="replace")) + 2
    assert (ids.dtype, ids.shape, real.sum()) == (np.int32, (40,), size)
    assert (ids[0], ids[size - 1]) == (BEGIN, END)
    assert (ids[size:] == PAD).all()
    assert bytes(ids[1 : size - 1].tolist()) == text.encode(errors="replace")
    check_prompt(Bytes(size), text)
    with pytest.raises(UserError, match=f"takes {size} tokens; this model reads {size - 1} "):
        check_prompt(Bytes(size - 1), text)


def test_a_text_is_cut_after_a_whole_character_and_no_text_is_nothing():
    ids, real = Bytes(7)("añé🟥")
    assert bytes(ids[1:6].tolist()) == "añé".encode()
    assert (ids[6], real.all()) == (END, True)
    ids, real = Bytes(7)("aaa🟥")
    assert bytes(ids[1:4].tolist()) == b"aaa"
    assert (ids[4], real.sum()) == (END, 5)
    ids, real = Bytes(5)("")
    assert (ids == PAD).all()
    assert not real.any()


@pytest.mark.first
@pytest.mark.parametrize(
    ("block", "gives"),
    [*((block, "context") for block in BLOCKS), ("adaln_zero", "both"), ("in_context", "pooled")],
)
def test_padding_does_not_matter(block, gives):
    model = network(block, gives)
    x, t = data(3)
    texts = ("a red circle", "é", "")
    short, long = (
        applied(model)(params_of(model), x, t, Cond(**tokens(*texts, length=n))) for n in (32, 45)
    )
    np.testing.assert_allclose(short, long, atol=2e-6)
    full = {k: v[:1, :14] for k, v in tokens(texts[0]).items()}
    assert full["tokens_mask"].all()
    alone = applied(model)(params_of(model), x[:1], t[:1], Cond(tokens=full["tokens"]))
    np.testing.assert_allclose(short[:1], alone, atol=2e-6)  # without a mask all are real


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_no_text_is_the_null_condition(block):
    model = network(block)
    x, t = data(2)
    run = functools.partial(applied(model), params_of(model), x, t)
    empty = run(Cond(**tokens("", "white")))
    dropped = run(Cond(**tokens("black", "white"), drop=jnp.asarray([True, False])))
    np.testing.assert_allclose(empty, dropped, atol=1e-6)
    assert np.isfinite(empty).all()
    assert np.abs(run(Cond(**tokens("black", "white"))) - dropped)[0].max() > 1e-4


def test_what_the_encoder_gives_may_be_computed_once():
    model = network("in_context", "both")
    x, t = data(2)
    cond = Cond(**tokens("black", ""))
    ready = quick(functools.partial(models.told, model))(params_of(model), cond)
    assert ready.tokens is None
    np.testing.assert_allclose(
        applied(model)(params_of(model), x, t, cond),
        applied(model)(params_of(model), x, t, ready),
        atol=1e-6,
    )
    for wrong, says in (
        (cond.replace(pooled=ready.pooled), r"Cond\.tokens and Cond\.pooled"),
        (Cond(), r"Cond\.tokens is missing"),
    ):
        with pytest.raises(UserError, match=says):
            jax.eval_shape(models.apply_fn(model), params_of(model), x, t, wrong)


@functools.cache
def trained(block, dropout=0.0, **more):
    """An experiment's loss for each example: ``loss(params, batch)``; parameters and a batch."""
    made = build({**told(block), "objective": {"name": "denoise", "condition_dropout": dropout}})
    batch = {k: jnp.asarray(v) for k, v in next(made.batches()).items()}
    run = quick(objective(made.loss, made.apply_fn, made.process, made.codec.encode))
    params = random_params(made.init)
    return made, (lambda p, b: run(p, b, rng.root(1))[1]["loss"]), params, batch


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_another_text_changes_the_loss_and_only_where_it_differs(block):
    _, loss, params, batch = trained(block)
    plain, white = loss(params, batch), (batch["tokens"] == ord("w")).any(1)
    assert 0 < white.sum() < 8
    for other in (batch["tokens"][::-1], batch["tokens"].at[:, 3].add(1)):
        mask = batch["tokens_mask"]
        changed = loss(params, {**batch, "tokens": other})
        differs = ((other != batch["tokens"]) & mask).any(1)
        assert differs.any()
        assert (np.abs(changed - plain)[differs] > 1e-5).all()
        np.testing.assert_allclose(changed[~differs], plain[~differs], atol=1e-6)


@pytest.mark.first
@pytest.mark.parametrize("block", BLOCKS)
def test_without_its_text_a_model_has_the_unconditional_loss(block):
    """That of the network alone, which is given no context but the null one."""
    made, loss, params, batch = trained(block, dropout=1.0)
    plain = loss(params, batch)
    other = loss(params, {**batch, "tokens": batch["tokens"][::-1]})
    np.testing.assert_array_equal(plain, other)
    empty = jnp.zeros((8, 1, WORDS["width"]))

    def alone(params, x, t, cond):
        cond = cond.replace(tokens=None, tokens_mask=None, context=empty)
        return models.apply_fn(made.model.model)(params["model"], x, t, cond)

    run = quick(objective(made.loss, alone, made.process, made.codec.encode))
    np.testing.assert_allclose(plain, run(params, batch, rng.root(1))[1]["loss"], rtol=1e-5)


def test_captions_enter_batches_as_tokens_and_are_chosen_by_position():
    made = build(told(several=True))
    assert made.conditions == ("tokens",)
    assert (made.context_len, made.arrays) == (WORDS["length"], ())
    pickled = pickle.dumps(made.source.train)
    assert len(pickled) < 1000
    streams = []
    for batch_size, rows in ((8, [range(8)]), (4, [range(4)]), (16, [range(8), range(8, 16)])):
        batches = []
        for own in rows:  # of each process
            stream = pipeline.batches(pickle.loads(pickled), batch_size=batch_size, seed=3)
            stream.take_rows(own)
            batches += [next(stream) for _ in range(16 // batch_size)]
            stream.close()
        assert set(batches[0]) == {"x", "id", "tokens", "tokens_mask"}
        streams.append({k: np.concatenate([b[k] for b in batches]) for k in batches[0]})
    for other in streams[1:]:
        for name, column in streams[0].items():
            np.testing.assert_array_equal(column, other[name])
    lengths = streams[0]["tokens_mask"].sum(1)
    assert set(lengths) == {5 + 2, len("a picture, all white") + 2}  # one or the other
    assert isinstance(made.source.train, Tokenized)
    for i, caption in enumerate(made.captions_of("held_out", 14)):
        expected = Bytes(WORDS["length"])(caption)[0]
        np.testing.assert_array_equal(made.source.held_out[i % 12]["tokens"], expected)
    (batch,) = pipeline.eval_batches(made.source.held_out, batch_size=12)
    assert batch["tokens"].shape == (12, WORDS["length"])


def test_without_a_section_text_captions_are_left_out():
    plain = {k: v for k, v in told().items() if k != "text"}
    assert "text" not in complete(plain)
    assert complete({**plain, "text": {"name": "none"}}) == complete(plain)
    assert complete(override(told(), {"text.name": None})) == complete(plain)
    made = build(plain)
    stream = made.batches()
    assert set(next(stream)) == {"x", "id"}
    stream.close()
    assert made.text is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"name": "noise", "shape": SHAPE}}, r"needs data with a caption each"),
        ({"model": {**told()["model"], "context_dim": 3}}, "it follows from the section text"),
        ({"text": {**WORDS, "width": 10, "heads": 4}}, "heads must be an even part of the width"),
        ({"text": {**WORDS, "length": 2}}, "length=2"),
        ({"text": {"name": "byte"}}, "no text 'byte': did you mean 'bytes'"),
        ({"text": {**WORDS, "attention": "xla"}}, "it follows from other sections"),
        ({"text": {"width": 8}}, r"the config lacks text\.name"),
    ],
)
def test_a_text_that_cannot_work_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        build({**told(), **changes})


def test_the_encoder_keeps_its_size_under_mup_and_runs_as_the_network_does():
    made = build({**told(), "model": {**told()["model"], "remat": "dots", "attention": "xla"}})
    assert (made.text.remat, made.text.attention, made.text.dtype) == ("dots", "xla", "float32")
    params = jax.eval_shape(made.init, rng.root(0))
    transfer = Transfer(base_width=4, base_depth=1)
    assert ratios(transfer, made.axes, params) == (4.0, 1.0)  # of the network: 16 channels
    factors = rate_multipliers(transfer, made.axes, params)
    assert set(jax.tree.leaves(factors["text"])) == {1.0}
    assert 0.25 in jax.tree.leaves(factors["model"])
