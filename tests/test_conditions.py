"""Conditions of every kind, from the data to the loss and to the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_run import TINY, save

import dit.data.sources
from dit import rng, sample
from dit.draw import Recipe, Sampler
from dit.experiment import build
from dit.training.step import objective
from dit.types import UserError

SOURCE = """
import dataclasses
import numpy as np
from dit.data.source import Source, generator

@dataclasses.dataclass(frozen=True)
class Told:
    fingerprint: str
    known: bool
    streaming: bool = False
    transforms: tuple = ()

    def __len__(self):
        return 12

    def __getitem__(self, i):
        draw = generator(0, self.fingerprint.split("/")[-1], i)
        number = lambda *shape: draw.standard_normal(shape).astype(np.float32)
        example = {
            "x": draw.integers(0, 256, (1, 4, 4, 1), np.uint8),
            "label": i % 3,
            "context": number(2, 5),
            "context_mask": np.array([True, i % 2 == 0]),
            "pooled": number(3),
            "guidance": np.float32(draw.uniform(1, 4)),
            "concat": number(1, 4, 4, 2),
        }
        known = np.repeat(np.repeat(draw.random((1, 2, 2)) < 0.5, 2, 1), 2, 2)
        return {**example, **({"known": known} if self.known else {})}

def build(*, known: bool = False):
    splits = (Told(f"told-{known}/{part}", known) for part in ("train", "held_out"))
    return Source(*splits, shape=(1, 4, 4, 1), num_classes=3, fingerprint=f"told-{known}")
"""
TAKES = {"context_dim": 5, "pooled_dim": 3, "guidance_input": True, "concat_channels": 2}
CONDITIONS = ("context", "pooled", "guidance", "concat")


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
    data = {"name": "told", "known": "known" in objective}
    model = {**TINY["model"], **TAKES, "block": "cross_attention"}
    return {**TINY, "data": data, "model": model, "objective": {"name": "denoise", **objective}}


def moved(made):
    """Parameters of which none is zero."""
    params = jax.jit(made.init)(rng.root(0))
    return jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)


def test_changing_any_condition_of_a_batch_changes_its_loss():
    experiment = build(config(known="data", condition_dropout=0.0))
    assert experiment.conditions == CONDITIONS
    batch = {k: jnp.asarray(v) for k, v in next(experiment.batches()).items()}
    parts = experiment.loss, experiment.apply_fn, experiment.process, experiment.codec.encode
    loss_fn = jax.jit(objective(*parts))
    params = moved(experiment)
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
        moved(experiment),
        Recipe(labels=(0, 1, 2), solver="euler", steps=2, guidance="2"),
    )
    given = experiment.held_out_conditions(3)
    assert set(given) == {*CONDITIONS, "context_mask"}
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
    other = build({**config(), "data": {"name": "noise", "shape": (1, 4, 4, 1), "num_classes": 3}})
    with pytest.raises(UserError, match="the model takes context, pooled"):
        other.held_out_conditions(3)


def test_the_command_takes_conditions_and_gives_the_network_what_is_known_clean(tmp_path):
    changes = {k: v for k, v in config(known=0.5).items() if k in ("model", "objective")}
    made = save(tmp_path / "run", {"name": "told"}, **changes)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (3, 4, 4, 1), np.uint8)
    mask = np.zeros((3, 4, 4, 1), bool)
    mask[:, :2] = True
    np.savez(tmp_path / "init.npz", samples=pixels)
    np.savez(tmp_path / "mask.npz", mask=mask)
    np.savez(tmp_path / "cond.npz", **made.held_out_conditions(3))
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
    np.savez(tmp_path / "cond.npz", clip=np.zeros(3))
    with pytest.raises(UserError, match="got 'clip' in"):
        run(*files)


def test_clean_tokens_are_for_models_that_were_trained_with_them():
    experiment = build(config())
    recipe = Recipe(labels=(0,), solver="euler", steps=2, known="clean")
    with pytest.raises(UserError, match="never trained with clean tokens"):
        Sampler(experiment, recipe)
    sampler = Sampler(build(config(level="token")), recipe)
    with pytest.raises(UserError, match="no mask"):
        sampler.check(False, {"label": np.zeros(1, np.int32)})
