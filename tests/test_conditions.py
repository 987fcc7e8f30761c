"""Conditions of every kind, from the data to the loss and to the samples."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from random_params import random_params
from saved_run import TINY, save

import dit.data.sources
from dit import evaluate, rng, sample, train
from dit.data.source import digest
from dit.draw import Drawn, Recipe, Sampler, load_experiment
from dit.experiment import build
from dit.media import read_recipe
from dit.prompts import with_conditions
from dit.training.checkpoint import Restored, restore_params
from dit.training.state import TrainState
from dit.training.step import objective as objective_of
from dit.types import Cond, UserError

SOURCE = """
import dataclasses
import numpy as np
from dit.data.source import Source, generator

@dataclasses.dataclass(frozen=True)
class Told:
    fingerprint: str
    known: bool
    height: int
    streaming: bool = False
    transforms: tuple = ()

    def __len__(self):
        return 12

    def __getitem__(self, i):
        draw = generator(0, self.fingerprint.split("/")[-1], i)
        number = lambda *shape: draw.standard_normal(shape).astype(np.float32)
        example = {
            "x": draw.integers(0, 256, (1, self.height, 4, 1), np.uint8),
            "label": (i + 1) % 3,
            "context": number(2, 5),
            "context_mask": np.array([True, i % 2 == 0]),
            "pooled": number(3),
            "guidance": np.float32(draw.uniform(1, 4)),
            "concat": number(1, self.height, 4, 2),
        }
        known = np.repeat(np.repeat(draw.random((1, self.height // 2, 2)) < 0.5, 2, 1), 2, 2)
        return {**example, **({"known": known} if self.known else {})}

def build(*, known: bool = False, height: int = 4):
    splits = (Told(f"told-{known}/{part}", known, height) for part in ("train", "held_out"))
    return Source(*splits, shape=(1, height, 4, 1), num_classes=3, fingerprint=f"told-{known}")
"""
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TAKES = {"context_dim": 5, "pooled_dim": 3, "guidance_input": True, "concat_channels": 2}
CONDITIONS = ("context", "pooled", "guidance", "concat")


def quick(function):
    """``jax.jit`` for programs that run once."""
    return jax.jit(function, compiler_options=QUICK)


@pytest.fixture(scope="module", autouse=True)
def told(tmp_path_factory):
    """A source of all conditions, where ``resolve`` finds it."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "told.py").write_text(SOURCE)
    before = dit.data.sources.__path__
    dit.data.sources.__path__ = [*before, str(folder)]
    yield
    dit.data.sources.__path__ = before


def config(**objective):
    data = {"name": "told", "known": "data" in objective.get("tasks", ())}
    model = {**TINY["model"], **TAKES, "block": "cross_attention"}
    return {**TINY, "data": data, "model": model, "objective": {"name": "denoise", **objective}}


def test_changing_any_condition_of_a_batch_changes_its_loss():
    experiment = build(config(tasks=("data",), condition_dropout=0.0))
    assert experiment.conditions == CONDITIONS
    assert experiment.context_len == 2
    batch = {k: jnp.asarray(v) for k, v in next(experiment.batches()).items()}
    parts = experiment.loss, experiment.apply_fn, experiment.process, experiment.codec.encode
    loss_fn = jax.jit(objective_of(*parts))
    params = random_params(experiment.init)
    loss = lambda **change: loss_fn(params, {**batch, **change}, rng.root(1))[1]["loss"]  # noqa: E731
    plain = loss()
    for name in ("label", *CONDITIONS, "known", "context_mask"):
        value = batch[name]
        other = ~value if value.dtype == bool else (value + 1) % 3 if name == "label" else value + 1
        if name == "context_mask":
            other = jnp.ones_like(value)
        assert np.abs(loss(**{name: other}) - plain).max() > 1e-4, name


def test_samples_are_given_the_conditions_of_held_out_data():
    experiment = build(config())
    params, recipe = (
        random_params(experiment.init),
        Recipe(labels=(0, 1, 2), solver="euler", steps=2, guidance="2"),
    )
    given = experiment.conditions_of("held_out", 3)
    assert set(given) == {*CONDITIONS, "label", "context_mask"}
    del given["label"]
    sampler = Sampler(experiment, recipe)
    drawn = sampler(params, **given).samples
    for name in CONDITIONS:
        other = sampler(params, **{**given, name: given[name] + 1}).samples
        assert (other != drawn).any(), name
    for wrong in ({}, {**given, "r": given["guidance"]}):
        with pytest.raises(UserError, match=r"got the conditions .*; the model takes"):
            sampler(params, **wrong)
    with pytest.raises(UserError, match="2 rows of pooled for 3 samples"):
        sampler(params, **{**given, "pooled": given["pooled"][:2]})
    given["context"] = given["context"][:, :1]  # of another length: compiled anew
    assert sampler(params, **given | {"context_mask": np.ones((3, 1), bool)}).samples.any()


def test_samples_with_conditions_have_the_labels_that_belong_to_them():
    experiment = build(config())
    recipe, given = with_conditions(experiment, Recipe(labels=(0, 1, 2, 0), solver="euler"))
    rows = [experiment.source.held_out[i] for i in range(4)]
    assert recipe.labels == tuple(row["label"] for row in rows)
    np.testing.assert_array_equal(given["pooled"], np.stack([row["pooled"] for row in rows]))
    plain = build({**TINY, "data": {"name": "told"}})
    assert with_conditions(plain, recipe) == (recipe, {})


@pytest.mark.parametrize("taken", [TAKES, {"second_time": True}], ids=str)
def test_a_model_that_takes_what_the_data_have_not_is_refused_when_it_is_built(taken):
    data = {"name": "noise", "shape": (1, 4, 4, 1), "num_classes": 3}
    with pytest.raises(
        UserError, match=r"the model takes (context, pooled|r,).* have only x, label"
    ):
        build({**TINY, "model": {**TINY["model"], **taken}, "data": data})


UNET = {
    "name": "unet",
    "width": 8,
    "multipliers": (1,),
    "depth": 1,
    "head_size": 8,
    "norm_groups": 4,
}


def test_a_unet_learns_from_pixels_of_which_half_are_clean():
    """Their loss does not count, and what they are changes that of the others."""
    experiment = build({**config(tasks=("data",), condition_dropout=0.0), "model": UNET})
    batch = next(experiment.batches())
    batch = {k: jnp.asarray(batch[k]) for k in {"x", "id", "label", "known"} & batch.keys()}
    parts = experiment.loss, experiment.apply_fn, experiment.process, experiment.codec.encode
    params = random_params(experiment.init)
    value = quick(jax.value_and_grad(objective_of(*parts), has_aux=True))
    (loss, _), grads = value(params, batch, rng.root(1))
    assert jnp.isfinite(loss)
    assert all(np.isfinite(g).all() and g.any() for g in jax.tree.leaves(jax.device_get(grads)))
    for change in (
        {"x": jnp.where(batch["known"][..., None], 255 - batch["x"], batch["x"])},
        {"known": ~batch["known"]},
    ):
        assert abs(value(params, batch | change, rng.root(1))[0][0] - loss) > 1e-5


@pytest.mark.parametrize(
    ("level", "model"),
    [
        ("frame", TINY["model"]),
        ("token", UNET),
        pytest.param("frame", {**UNET, "temporal": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_frames_and_pixels_are_given_clean(level, model):
    """A mask that cuts a frame is refused where a frame has one noise level."""
    data = {"name": "noise", "shape": (2, 4, 4, 1), "num_classes": 3}
    objective = {"name": "denoise", "level": level}
    experiment = build({**TINY, "data": data, "model": model, "objective": objective})
    recipe = Recipe(labels=(0, 1), solver="euler", steps=2, known="clean")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 4, 1), np.uint8)
    mask = np.zeros(pixels.shape, bool)
    mask[:, 0] = True
    if level == "token":
        mask[:, 1, :, 2:] = True
    params, outputs = random_params(experiment.init), []
    for known in ("clean", "noised"):
        sampler = Sampler(experiment, dataclasses.replace(recipe, known=known))
        outputs.append(sampler(params, start=pixels, mask=mask).samples)
        np.testing.assert_array_equal(outputs[-1][mask], pixels[mask])
    assert (outputs[0] != outputs[1])[~mask].any()
    if level == "frame":
        mask[1, 1, 0] = True
        with pytest.raises(UserError, match="keeps a part of frame 1 of sample 1"):
            Sampler(experiment, recipe)(params, start=pixels, mask=mask)


@pytest.mark.first
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_model_that_takes_more_begins_as_the_one_that_takes_less(name, tmp_path):
    """With the parameters of its checkpoint, and with its outputs, whatever the conditions are."""
    model = {**TINY["model"], "positions": "sincos"} if name == "dit" else UNET
    less = save(tmp_path / "run", {"name": "told"}, model=model)
    more = {k: v for k, v in TAKES.items() if k != "context_dim"}
    params = jax.eval_shape(less.init, rng.root(0))
    settings = {"path": str(tmp_path / "run"), "only": [f"{part}/*" for part in params]}
    experiment = build(config() | {"model": {**model, **more}, "init_from": settings})
    given = experiment.initial(jax.eval_shape(experiment.init, rng.root(0))).params
    before = restore_params(tmp_path / "run", params).params
    assert given.keys() == flatten_dict(before, sep="/").keys()

    @quick
    def fresh(key):
        params = flatten_dict(experiment.init(key), sep="/")
        return {name: params[name] for name in params.keys() - given.keys()}

    mixed = fresh(rng.root(0)) | given
    batch = next(experiment.batches())
    x, t = jnp.ones((8, *experiment.shape)), jnp.full((8,), 0.3)
    cond = Cond.of({k: jnp.asarray(v) for k, v in batch.items() if "context" not in k})
    got = quick(experiment.apply_fn)(unflatten_dict(mixed, sep="/"), x, t, cond)
    want = quick(less.apply_fn)(before, x, t, Cond(label=cond.label))
    assert jnp.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_pictures_of_several_shapes_are_drawn_with_the_conditions_of_their_own(
    tmp_path, monkeypatch
):
    """And carry their digests, so that the command asks for the same ones."""
    parts = ({"name": "told"}, {"name": "told", "height": 8}, {"name": "told"})
    experiment = build({**config(), "data": {"name": "mixture", "parts": parts}})
    drawn = []

    def sampler(self, params, **given):
        drawn.append((self.experiment.shape, self.recipe.labels, given))
        return Drawn(np.zeros((4, *self.experiment.shape), np.uint8), self.labels, 1, 0.0)

    paint = train.painter(experiment, tmp_path)
    monkeypatch.setattr(Sampler, "__call__", sampler)
    monkeypatch.setattr(train, "taken_from", lambda state: Restored({}, 1, "params", "0"))
    paint(object.__new__(TrainState), 1)
    assert [shape for shape, _, _ in drawn] == [(1, 4, 4, 1), (1, 8, 4, 1)]
    for i, (shape, labels, given) in enumerate(drawn):
        rows = [experiment.source.bucket(i).held_out[k] for k in range(4)]
        assert labels == tuple(row["label"] for row in rows)
        assert given["concat"].shape == (4, *shape[:-1], 2)
        for name, value in given.items():
            np.testing.assert_array_equal(value, [row[name] for row in rows])
        stamp = read_recipe(tmp_path / f"samples/step_0000001_1x{shape[1]}x4.png")
        assert stamp["inputs"]["concat"] == digest(given["concat"])


def test_the_command_takes_conditions_and_gives_the_network_what_is_known_clean(tmp_path):
    changes = {k: v for k, v in config(tasks=("tokens",)).items() if k in ("model", "objective")}
    made = save(tmp_path / "run", {"name": "told"}, **changes)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (3, 4, 4, 1), np.uint8)
    mask = np.zeros((3, 4, 4, 1), bool)
    mask[:, :2] = True
    np.savez(tmp_path / "init.npz", samples=pixels)
    np.savez(tmp_path / "mask.npz", mask=mask)
    given = made.conditions_of("held_out", 3)
    np.savez(tmp_path / "cond.npz", **{k: v for k, v in given.items() if k != "label"})
    options = [f"--workdir={tmp_path / 'run'}", "--labels=0,1,2", f"--out={tmp_path / 'out.npz'}"]
    files = [f"--{name}={tmp_path / name}.npz" for name in ("init", "mask", "cond")]

    def run(*more):
        sample.main([*options, *more])
        return np.load(tmp_path / "out.npz")["samples"].reshape(pixels.shape)

    clean, noised = (run(*files, f"--known={known}") for known in ("clean", "noised"))
    for out in (clean, noised):
        np.testing.assert_array_equal(out[mask], pixels[mask])
    assert (clean != noised)[~mask].any()
    with pytest.raises(UserError, match="the model takes"):
        run(*files[:2])
    with pytest.raises(UserError, match="--known is of no effect without --mask"):
        run(files[0], files[2], "--known=clean")
    as_numbers = {"context_mask": given["context_mask"].astype(np.float32)}
    for mask_of, message in ((as_numbers, None), ({"context_mask": np.full((3, 2), 2)}, "0 and 1")):
        np.savez(tmp_path / "cond.npz", **{n: given[n] for n in CONDITIONS} | mask_of)
        if message is None:
            np.testing.assert_array_equal(run(*files, "--known=clean"), clean)
        else:
            with pytest.raises(UserError, match=message):
                run(*files)
    np.savez(tmp_path / "cond.npz", clip=np.zeros(3))
    with pytest.raises(UserError, match="got 'clip' in"):
        run(*files)


def test_samples_are_judged_with_the_conditions_of_held_out_data(tmp_path, monkeypatch):
    """Under the labels that belong to them, whatever the figures are."""
    save(tmp_path / "run", {"name": "told"}, model=config()["model"])
    judged = {}

    class Evaluation:
        figures, left_out, size = ("nothing",), {}, 4

        def __call__(self, samples, labels):
            judged.update(samples=samples, labels=labels)
            return {"nothing": 0.0}

    monkeypatch.setattr(evaluate, "evaluation_of", lambda *of: Evaluation())
    assert evaluate.main([f"--workdir={tmp_path / 'run'}", "--num=4"]) == 0
    experiment = load_experiment(str(tmp_path / "run"))
    expected = [experiment.source.held_out[i]["label"] for i in range(4)]
    assert judged["labels"].tolist() == expected
    assert judged["samples"].shape == (4, *experiment.shape)
    recipe = json.loads((tmp_path / "run" / "evaluation.json").read_text())["recipe"]
    assert recipe["labels"] == "4 samples, classes of held-out examples"


def test_clean_tokens_are_for_models_that_were_trained_with_them():
    experiment = build(config())
    recipe = Recipe(labels=(0,), solver="euler", steps=2, known="clean")
    with pytest.raises(UserError, match="never trained with clean tokens or frames"):
        Sampler(experiment, recipe)
    sampler = Sampler(build(config(level="token")), recipe)
    with pytest.raises(UserError, match="no mask"):
        sampler.check(False, {"label": np.zeros(1, np.int32)})
