"""Frozen encoders inside of the training step, and inside of the sampler."""

import dataclasses
import pickle
import re
import shutil

import captions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved_run
from PIL import Image
from random_params import random_params
from shrunken import CONFIGS, shrunken
from text_cases import save

from dit import carry, draw, embed, prepare, rng, sample
from dit.config import resolve
from dit.data import records
from dit.draw import Sampler
from dit.encoders import Encoders
from dit.experiment import build
from dit.parallel import compiler
from dit.parallel.frozen import identities, place, where
from dit.parallel.mesh import make_mesh, parse_mesh
from dit.parallel.topology import find
from dit.preflight import programs
from dit.preflight.__main__ import stand_in
from dit.preflight.account import Choice, account
from dit.recipe import Recipe
from dit.scaling.flops import training_flops
from dit.scaling.jaxpr_flops import count_flops
from dit.training.loop import train
from dit.training.program import program
from dit.training.step import objective, untold
from dit.types import UserError

pytest.importorskip("tokenizers", reason="needs the extra 'text'")
pytest.importorskip("sentencepiece", reason="needs the extra 'text'")
ROOM = "text.pretrained"


@pytest.fixture(scope="module", autouse=True)
def captioned():
    with captions.installed():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Directories with a small CLIP that projects, another that does not, and a T5."""
    root = tmp_path_factory.mktemp("encoders")
    save(root / "small", "clip", projected=True)
    save(root / "large", "clip", seed=1)
    save(root / "t5", "t5")
    save(root / "other", "clip", projected=True, seed=2)
    return root


def names(folders):
    """As for Stable Diffusion 3; of the T5 padding counts as text."""
    clips = [f"clip:path={folders / name},layers=-2" for name in ("small", "large")]
    return (*clips, f"t5:path={folders / 't5'},length=9,padding=real")


def told(folders, **changes):
    one = f"clip:path={folders / 'small'}"
    config = {**captions.told(), "text": {"name": "pretrained", "encoders": one}}
    return {**config, "objective": {"name": "denoise", "condition_dropout": 0.0}, **changes}


def frozen_text(*encoders):
    return {"name": "pretrained", "encoders": encoders}


@pytest.mark.slow
def test_the_step_is_that_on_embeddings_made_beforehand(folders):
    """The loss and its gradient; of an empty text, those of the null condition."""
    made = build(told(folders, text=frozen_text(*names(folders))))
    assert made.conditions == ("tokens",)
    assert (made.arrays, made.context_len) == ((), 17 + 9)
    assert (made.model.context_dim, made.model.pooled_dim) == (48, 34)
    split, asked = made.source.held_out, made.captions_of("held_out", 8)
    rows = [split[i] for i in range(8)]
    batch = {k: jnp.stack([row[k] for row in rows]) for k in ("x", "tokens", "tokens_mask")}
    batch["id"] = jnp.arange(8)
    nothing, real = made.text.tokenizer()("")
    assert not real.any()
    batch["tokens"] = batch["tokens"].at[3].set(nothing)
    batch["tokens_mask"] = batch["tokens_mask"].at[3].set(real)
    params, key = random_params(made.init), rng.root(1)
    weights = place(made.frozen, None)["text"]

    def gradient(tell):
        loss_fn = objective(made.loss, made.apply_fn, made.process, made.codec.encode, tell)
        run = jax.value_and_grad(lambda p, b, t: loss_fn(p, b, key, text=t), has_aux=True)
        return jax.jit(run, compiler_options=compiler.options("cpu", once=True))

    inside = gradient(made.tell)
    found = inside(params, batch, weights)
    encoders = Encoders.open(names(folders), make_mesh(parse_mesh("dp"), jax.devices()[:1]))
    arrays = encoders(encoders.tokens(asked)[0], 8)
    rest = {k: batch[k] for k in ("x", "id")}
    embedded = {**rest, **arrays, "drop": jnp.arange(8) == 3}
    wanted = gradient(untold)(params, embedded, {})
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(b).max())))
    other = {**batch, "tokens": batch["tokens"][::-1]}
    change = np.abs(inside(params, other, weights)[0][1]["loss"] - found[0][1]["loss"])
    differs = (batch["tokens"] != other["tokens"]).any(1) & (jnp.arange(8) != 3)
    assert 0 < differs.sum() < 8
    assert (change[differs] > 1e-5).all()
    np.testing.assert_allclose(change[~differs], 0, atol=1e-6)


def stepped(folders, devices, mesh, steps=2):
    """The state after some steps, the losses, the text of the program and the weights."""
    mesh = {"preset": mesh} if isinstance(mesh, str) else mesh
    experiment = build(told(folders, mesh=mesh, schedule={"name": "constant"}))
    batches = experiment.batches()
    run = program(experiment, batches, jax.devices()[:devices])
    state = jax.jit(run.create, out_shardings=run.shardings)(jax.random.key(0))
    key = jax.device_put(jax.random.key(1), run.replicated)
    losses, text = [], None
    for _ in range(steps):
        batch = jax.device_put(next(batches), run.batch_sharding)
        text = text or run.train_step.lower(state, batch, key).as_text()
        state, metrics = run.train_step(state, batch, key)
        losses.append(float(metrics["loss"]))
    batches.close()
    return jax.device_get(state), losses, text, place(experiment.frozen, run.mesh)["text"]


@pytest.mark.slow
def test_weights_are_arguments_split_over_devices_that_agree_with_one(folders):
    state, losses, text, _ = stepped(folders, 1, "dp")
    large = max(map(len, re.findall(r'dense<"0x([0-9A-F]*)"', text)), default=0)
    assert large < 2**12  # hexadecimal digits of a constant
    other, found, _, placed = stepped(folders, 8, "fsdp")
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    shapes = {x.shape for x in jax.tree.leaves(placed) if x.size > 1000}
    for part in (state.params, state.opt_state, state.ema):  # nothing of the encoders is trained
        assert not shapes & {x.shape for x in jax.tree.leaves(part)}
    for a, b in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    _, found, _, placed = stepped(folders, 8, {"fsdp": 8, "whole": "text"})
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
    np.testing.assert_allclose(found, losses, rtol=1e-5)


def test_devices_hold_whole_what_the_mesh_says(folders):
    mesh = make_mesh({"fsdp": 8})

    def split(**mesh_config):
        spots = where(build(told(folders, mesh=mesh_config)).frozen, mesh)["text"]
        return not all(x.is_fully_replicated for x in jax.tree.leaves(spots))

    assert split()
    assert split(fsdp=8)
    assert not split(whole="text")
    assert not split(fsdp=8, whole=("text",))
    for name in ("base", "codec"):
        with pytest.raises(UserError, match=f"whole='{name}'.*those that it has \\(text\\)"):
            split(whole=name)


def test_an_account_has_frozen_weights_in_parts_or_whole(folders):
    here = find("cpu:8")
    parted, held = (
        account(lambda policy, m=mesh: build(told(folders, mesh=m)), here)
        for mesh in ({"fsdp": 8}, {"fsdp": 8, "whole": "text"})
    )
    size = sum(4 * x.size for x in jax.tree.leaves(build(told(folders)).text.weights.abstract))
    assert (parted.frozen, parted.held, held.frozen, held.held) == (size, 0, 0, size)
    states = (own.parts(Choice({"fsdp": 8}, "none", 8))[0] for own in (held, parted))
    assert next(states) - next(states) == size * 7 / 8


def test_a_run_is_known_by_its_weights_and_vocabulary_wherever_they_lie(folders, tmp_path):
    place_of = shutil.copytree(folders / "small", tmp_path / "small")
    saved_run.save(tmp_path / "run", **told(tmp_path))
    known = identities(draw.load_experiment(str(tmp_path / "run")).frozen, None)
    assert carry.fingerprints_of(build(told(folders))) == known  # of a merged LoRA's workdir
    assert identities(build(told(folders)).frozen, None) == known
    half = told(folders, precision={"compute": "bfloat16"})
    assert identities(build(half).frozen, None) == known  # in whatever precision they are kept
    words = (place_of / "merges.txt").read_text()
    for name, change in (
        ("merges.txt", lambda file: file.write_text(words.replace("th e</w>\n", ""))),
        ("model.safetensors", lambda file: shutil.copy(folders / "other" / file.name, file)),
    ):
        change(place_of / name)
        with pytest.raises(UserError, match=r"vocabularies of the text encoders .* are not those"):
            place(draw.load_experiment(str(tmp_path / "run")).frozen, None)
        shutil.copy(folders / "small" / name, place_of / name)
    place(draw.load_experiment(str(tmp_path / "run")).frozen, None)


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """Of a run whose model is told what frozen encoders make of a text."""
    out = tmp_path_factory.mktemp("runs") / "text"
    saved_run.save(out, **told(folders, objective={"name": "denoise"}))
    return out


def test_prompts_and_negative_prompts_go_through_the_encoders(run):
    made, restored = draw.load(str(run), mesh="dp")
    recipe = Recipe(prompts=("white", "black"), solver="euler", steps=2, guidance="cfg:scale=3")

    def drawn(**changes):
        sampler = Sampler(made, dataclasses.replace(recipe, **changes))
        return sampler(restored.params).samples.astype(int)

    plain = drawn()
    other = drawn(prompts=("white", "white"), negative=("", "black"))
    np.testing.assert_allclose(other[0], plain[0], atol=1)  # no text is the null condition
    off = drawn(prompts=("white", "black"), negative=("black", "black"))
    assert (other[1] != plain[1]).any()
    assert (off != plain).any(axis=(1, 2, 3, 4)).all()
    with pytest.raises(UserError, match=r"takes 302 tokens of 17 that the encoders read"):
        Sampler(made, dataclasses.replace(recipe, prompts=("white", "a" * 300)))


def test_what_reads_data_is_small_and_goes_where_data_are_read(folders):
    made = build(told(folders, text=frozen_text(*names(folders))))
    sent = pickle.dumps(made.source.train)
    for x in jax.tree.leaves(jax.device_get(place(made.frozen, None)["text"])):
        assert x.size < 100 or x.tobytes()[:200] not in sent
    there = pickle.loads(sent)
    for i in range(3):
        ours, theirs = made.source.train[i], there[i]
        np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])
    found = [reader(["a red cat"]).ids[0] for reader in made.text.words.parts]
    np.testing.assert_array_equal(made.text.words("a red cat")[0], np.concatenate(found))


@pytest.mark.parametrize("kind", ["clip", "t5", "umt5", "bert"])
def test_products_are_counted(kind, tmp_path):
    save(tmp_path, kind, projected=kind == "clip")
    room = kind.removeprefix("um")
    made = resolve("text", "pretrained", encoders=({"name": room, "path": str(tmp_path)},))
    shape = jax.ShapeDtypeStruct((3, made.words.length), jnp.int32)
    real = jax.ShapeDtypeStruct(shape.shape, bool)
    run = lambda *args: vars(made.encode(*args))  # noqa: E731
    assert count_flops(run, made.weights.abstract, shape, real) == 3 * 2 * sum(made.macs.values())


def test_no_encoders_and_those_that_give_nothing_are_refused(folders):
    for encoders, says in (
        ((), "got no text encoders"),
        ((f"t5:path={folders / 't5'},use=pooled",), "the encoders give nothing"),
        (("clip:path=nowhere",), "no config.json in 'nowhere'"),
        (("clup",), "no pretrained 'clup'"),
        ((f"clip:path={folders / 'small'},size=3",), "unknown keyword 'size'"),
    ):
        with pytest.raises(UserError, match=says):
            build(told(folders, text={"name": "pretrained", "encoders": encoders}))


@pytest.fixture(scope="module")
def stored(folders, tmp_path_factory):
    """Records with what the small CLIP makes of their captions."""
    root = tmp_path_factory.mktemp("records")
    for i in range(12):
        (root / "in").mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 20 * i, np.uint8)).save(root / "in" / f"{i:02}.png")
        (root / "in" / f"{i:02}.txt").write_text(f"a red cat {i}\nthe other {i}\n")
    out = root / "out"
    argv = [f"--source={root / 'in'}", "--size=4", "--held-out=0.3", "--workers=0", "--batch=4"]
    prepare.main([*argv, f"--out={out}", f"--text=clip:path={folders / 'small'}"])
    return out


def test_stored_embeddings_are_known_by_the_encoders_that_made_them(stored, folders, tmp_path):
    data = {"name": "records", "path": str(stored)}
    made = build(told(folders, data=data, precision={"compute": "bfloat16"}))
    known = made.example["text"]
    assert known["weights"] == identities(made.frozen, None)["text"]
    assert known == records.read_manifest(stored)["fields"]["text_made_by"]
    assert resolve("data.sources", "mixture", parts=(data, data)).text == known
    stream = made.batches()
    batch = next(stream)
    stream.close()
    assert set(batch) == {"x", "id", "context", "context_mask", "pooled"}
    assert (made.flops_beside, made.text_flops > 0, made.context_len) == (0, True, 17)
    assert made.tell({}, batch).keys() == batch.keys()
    assert all(caption.startswith("a red cat") for caption in made.captions_of("held_out", 3))
    assert set(made.conditions_of("held_out", 2)) == set()  # samples are given prompts
    other = f"clip:path={folders / 'other'}"
    with pytest.raises(UserError, match="are not those that this run, or its data, were made with"):
        place(build(told(folders, data=data, text=frozen_text(other))).frozen, None)
    with pytest.raises(UserError, match=r"the data hold embeddings by .*'layers': \[-1\].*\[-2\]"):
        build(
            told(folders, data=data, text=frozen_text(f"clip:path={folders / 'small'},layers=-2"))
        )


@pytest.mark.slow
def test_conditions_by_other_encoders_are_refused(stored, folders, tmp_path):
    """Of a model without a section text, which is told what records hold."""
    config = {**captions.told(), "data": {"name": "records", "path": str(stored)}}
    del config["text"]
    config["model"] = {**config["model"], "context_dim": 24, "pooled_dim": 10}
    saved_run.save(tmp_path / "run", **config)
    argv = [f"--workdir={tmp_path / 'run'}", "--num=1", f"--out={tmp_path / 'x.npz'}"]
    with pytest.raises(UserError, match=r"give what dit.embed makes of it.* by --cond"):
        sample.main([*argv, "--prompt=red"])
    for name in ("small", "other"):
        text = [f"--text=clip:path={folders / name}", "--prompt=red"]
        embed.main([f"--out={tmp_path / name}.npz", *text])
    with pytest.raises(UserError, match=r"other\.npz holds embeddings by"):
        sample.main([*argv, f"--cond={tmp_path / 'other.npz'}"])
    sample.main([*argv, f"--cond={tmp_path / 'small.npz'}"])
    assert np.load(tmp_path / "x.npz")["samples"].shape == (1, 4, 4, 3)
    saved_run.save(tmp_path / "told", **told(folders, data=config["data"]))
    argv[0] = f"--workdir={tmp_path / 'told'}"
    sample.main([*argv, "--prompt=red"])
    assert np.load(tmp_path / "x.npz")["captions"].tolist() == ["red"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(folders, tmp_path):
    def trained(steps, workdir):
        made = build(told(folders, steps=steps, checkpoint={"every": 2}, log={"every": 1}))
        train(made, workdir, batches=made.batches(), progress=False)
        return made

    trained(2, tmp_path / "a")
    for workdir in (tmp_path / "a", tmp_path / "b"):
        made = trained(4, workdir)
    a, b = (draw.load_params(made, str(tmp_path / name), "params", None) for name in "ab")
    assert (a.step, a.fingerprint) == (4, b.fingerprint)
    moved_elsewhere = shutil.copytree(folders / "small", tmp_path / "there")
    made = build(told(folders, steps=5, text=frozen_text(f"clip:path={moved_elsewhere}")))
    assert train(made, tmp_path / "a", batches=made.batches(), progress=False).step == 5
    made = build(told(folders, steps=6, text=frozen_text(f"clip:path={folders / 'other'}")))
    with pytest.raises(UserError, match="made with other frozen weights of the text"):
        train(made, tmp_path / "a", batches=made.batches(), progress=False)


@pytest.mark.slow
def test_the_recipe_at_scale_is_preflighted_with_its_encoders(tmp_path):
    """Shrunken, and where its records are not."""
    (file,) = (file for file in CONFIGS if file.stem == "text_to_image_2b_pod")
    where = find("cpu:8", 1)
    config = stand_in(shrunken(file, tmp_path, **{"samples.batch": 8, "samples.steps": 2}), where)
    made = build(config)
    assert (made.shape, made.context_len) == ((1, 16, 16, 16), 17 + 256)
    step, drawn = programs.train_step(made, where), programs.sampler(made, where)
    assert step.fits
    assert drawn.fits
    each = training_flops(made.model, made.shape, made.context_len)
    assert made.text_flops > 0
    assert step.model_flops == 8 * (each + made.text_flops)
    assert (
        drawn.model_flops == 8 * (2 * 2 * 2 - 2) * each // 3 + 8 * made.text_flops
    )  # Heun, guided
