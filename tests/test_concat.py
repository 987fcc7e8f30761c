"""Known channels: what the section concat makes of data, and what training and sampling do with it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wan_vae_cases
from PIL import Image
from random_params import random_params
from saved_run import TINY, save

from dit import config, edits, evaluate, given, sample, train
from dit.draw import Sampler, load
from dit.experiment import build
from dit.parallel.frozen import place
from dit.parallel.mesh import batch_sharding, make_mesh
from dit.recipe import Recipe
from dit.sampling.edit import coarse
from dit.training.step import objective
from dit.types import UserError

F, SIDE = 5, 8
DATA = {"name": "noise", "shape": (F, SIDE, SIDE, 3), "num_classes": 3}
MASKED = {"name": "masked", "tasks": ("image_to_video",)}
MODEL = {**TINY["model"], "patch": (1, 4, 2)}


def made(**changes):
    return build({**TINY, "data": DATA, "model": MODEL, "concat": MASKED, **changes})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    out = tmp_path_factory.mktemp("concat") / "run"
    save(out, DATA, model=MODEL, concat=MASKED)
    return out


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(1).integers(0, 256, (2, F, SIDE, SIDE, 3), np.uint8)


def test_an_image_is_given_in_channels_and_what_follows_depends_on_it(workdir, tmp_path, clips):
    Image.fromarray(clips[0, 0]).save(tmp_path / "first.png")
    Image.fromarray(clips[1, 0]).save(tmp_path / "other.png")
    drawn = []
    for name in ("first", "other", "first"):
        image, out = f"--image={tmp_path}/{name}.png", f"{tmp_path}/{name}.npz"
        sample.main([f"--workdir={workdir}", "--labels=1", image, f"--out={out}"])
        drawn.append(np.load(out)["samples"])
    np.testing.assert_array_equal(drawn[0][0, 0], clips[0, 0])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert (drawn[0] != drawn[1])[:, 1:].any((0, 2, 3, 4)).all()
    with pytest.raises(UserError, match=r"always given something \(concat.tasks: image_to_video\)"):
        sample.main([f"--workdir={workdir}", "--labels=1", f"--out={tmp_path}/x.npz"])
    with pytest.raises(UserError, match="give --known=channels"):
        sample.main(
            [
                f"--workdir={workdir}",
                "--labels=1",
                image,
                "--known=clean",
                f"--out={tmp_path}/x.npz",
            ]
        )


def test_a_mask_inpaints_by_channels_where_the_model_has_them(tmp_path):
    data = {"name": "noise", "shape": (1, SIDE, SIDE, 3), "num_classes": 3}
    tasks = ("inpaint", "text_to_video")
    concat = {"name": "masked", "tasks": tasks, "marks": "unknown"}
    save(tmp_path / "run", data, model=MODEL, concat=concat)
    draws = np.random.default_rng(0)
    start = draws.integers(0, 256, (2, 1, SIDE, SIDE, 3), np.uint8)
    mask = np.zeros(start.shape, bool)
    mask[..., :4, :] = True
    np.savez(tmp_path / "mask.npz", mask=mask)
    drawn = {}
    for name, x in {"a": start, "hidden": np.where(mask, start, 0), "b": 255 - start}.items():
        np.savez(tmp_path / "init.npz", samples=x)
        options = [f"--init={tmp_path}/init.npz", f"--mask={tmp_path}/mask.npz", "--labels=0,1"]
        options += [f"--workdir={tmp_path}/run", f"--out={tmp_path}/{name}.npz"]
        sample.main(options)
        drawn[name] = np.load(tmp_path / f"{name}.npz")["samples"].reshape(start.shape)
    np.testing.assert_array_equal(drawn["a"][mask], start[mask])
    np.testing.assert_array_equal(drawn["a"], drawn["hidden"])
    assert (drawn["a"] != drawn["b"])[~mask].any()
    sample.main([*options[2:], f"--out={tmp_path}/free.npz"])  # a task of training gives nothing
    assert (np.load(tmp_path / "free.npz")["samples"].reshape(start.shape) != drawn["a"])[
        ~mask
    ].any()
    sample.main([*options, "--known=noised", f"--out={tmp_path}/noised.npz"])
    assert (np.load(tmp_path / "noised.npz")["samples"].reshape(start.shape) != drawn["b"])[
        ~mask
    ].any()


def test_what_is_not_given_is_not_seen(workdir, clips):
    experiment, restored = load(str(workdir))
    recipe = Recipe(labels=(0, 1), steps=2, known="channels", task="last_frame")
    sampler = Sampler(experiment, recipe)
    drawn = sampler(restored.params, start=clips).samples
    hidden = np.where(sampler.kept, clips, 255 - clips)
    np.testing.assert_array_equal(sampler(restored.params, start=hidden).samples, drawn)
    changed = sampler(restored.params, start=np.where(sampler.kept, 255 - clips, clips)).samples
    assert (changed != drawn)[:, :-1].any((1, 2, 3, 4)).all()


def test_training_draws_what_is_given_by_the_tasks(clips):
    tasks = ("image_to_video", "last_frame:weight=2", "text_to_video")
    experiment = made(concat=MASKED | {"tasks": tasks, "marks": "unknown"})
    batch = {"x": jnp.repeat(clips, 16, 0), "id": jnp.arange(32), "label": np.zeros(32, int)}
    key = jax.random.key(3)
    found = np.asarray(experiment.show({}, batch, key, batch["id"])["concat"])
    mask, seen = found[..., :1], found[..., 1:]
    assert found.shape == (32, F, SIDE, SIDE, 4)
    known = 1 - mask[:, :, 0, 0, 0]
    kinds = {tuple(row) for row in known.astype(int)}
    assert kinds == {(1, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 0)}
    pixels = np.asarray(experiment.codec.encode({}, batch["x"]))
    expected = np.where(mask == 0, pixels, 128 / 127.5 - 1)
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    where = batch_sharding(make_mesh({"data": 8}))
    split = jax.tree.map(lambda a: jax.device_put(a, where), batch)
    there = jax.jit(lambda b: experiment.show({}, b, key, b["id"])["concat"])(split)
    assert there.sharding.is_equivalent_to(where, there.ndim)
    np.testing.assert_allclose(there, found, atol=1e-6)
    other = np.asarray(experiment.show({}, batch, jax.random.key(4), batch["id"])["concat"])
    assert (other[..., :1] != mask).any()


def test_other_channels_are_another_loss_and_its_gradient_reaches_them(clips):
    experiment = made()
    params = random_params(experiment.init, 0.2, 0)
    batch = {"x": jnp.asarray(clips), "id": jnp.arange(2), "label": jnp.zeros(2, int)}
    apply_fn, process, encode, tell, show = experiment.parts

    def swapped(params, batch, *drawn):
        return show(params, {**batch, "x": batch["x"][::-1]}, *drawn)

    key, found = jax.random.key(0), []
    for each in (show, swapped):
        loss = objective(experiment.loss, apply_fn, process, encode, tell, each)
        value, grads = jax.value_and_grad(lambda p, f=loss: f(p, batch, key)[0])(params)
        assert np.abs(grads["concat"]["kernel"]).max() > 0
        found.append(float(value))
    assert abs(found[0] - found[1]) > 1e-4


def test_a_run_trains_draws_and_is_evaluated(tmp_path):
    options = {
        **{"steps": 2, "data.name": "moving_digits", "data.frames": 3, "data.size": 16},
        **{"concat.name": "masked", "model.patch": "(1,4,4)", "model.width": 16, "model.heads": 2},
        **{"model.depth": 1, "batch_size": 8, "samples.num": 2, "samples.steps": 2, "log.every": 1},
        **{"samples.solver": "euler", "samples.guidance": 1, "samples.every": 2},
        "schedule.warmup": 1,
    }
    asked = ["--config=moving_digits", f"--workdir={tmp_path}"]
    asked += [f"--config.{name}={value}" for name, value in options.items()]
    assert train.main(asked) in (0, None)
    assert (tmp_path / "samples/step_0000002.png").is_file()
    evaluate.main([f"--workdir={tmp_path}", "--num=2", "--task=image_to_video"])
    assert "first_frame_psnr" in (tmp_path / "evaluation.json").read_text()


CAUSAL = {  # an autoencoder of clips: 5 frames are 2 of latents, 9 are 3
    "data": {"name": "noise", "shape": (9, 16, 16, 3)},
    "model": {**TINY["model"], "patch": (1, 2, 2)},
}


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    wan_vae_cases.save(folder / "vae", "plain")
    return {**TINY, **CAUSAL, "codec": {"name": "wan_vae", "path": str(folder / "vae")}}


def test_tasks_of_a_causal_codec_give_whole_latents(causal):
    experiment = build({**causal, "objective": {"name": "denoise", "tasks": ("extend",)}})
    assert experiment.codec.frames_of(experiment.shape) == (1, 4, 4)
    frames = {"image_to_video": [0], "extend:frames=2": range(5), "last_frame": range(5, 9)}
    for task, kept in frames.items():
        recipe = Recipe(num=1, task=task, known="clean")
        mask = edits.mask_of(experiment, recipe)
        assert mask.shape == (1, 9, 16, 16, 3)
        np.testing.assert_array_equal(mask[0, :, 0, 0, 0], np.isin(np.arange(9), kept))
        each = experiment.codec.frames_of(experiment.shape)
        whole = coarse(jnp.asarray(mask), experiment.shape, each)[0, :, 0, 0, 0]
        assert int(whole.sum()) == {1: 1, 5: 2, 4: 1}[len(kept)]
    for length, task, count in ((5, "extend", 2), (4, "extend_back", 1), (8, "extend_back", 2)):
        video = {"video": np.zeros((length, 16, 16, 3), np.uint8)}
        found = given.with_task(Recipe(num=1, task=task), experiment, video, None)
        assert (found.task, found.known) == (f"{task}:frames={count}", "clean")
    video = {"video": np.zeros((4, 16, 16, 3), np.uint8)}
    with pytest.raises(UserError, match=r"has 4 frames, and .* of 1, 4, 4 frames each"):
        given.with_task(Recipe(num=1, task="extend"), experiment, video, None)


def test_the_first_latent_of_a_causal_codec_is_marked_as_often_as_others(causal):
    masked = MASKED | {"masks": 4}
    experiment = build({**causal, "concat": masked})
    assert experiment.model.concat_channels == 9
    x = np.random.default_rng(0).integers(0, 256, (1, 9, 16, 16, 3), np.uint8)
    known = np.zeros((1, 9, 16, 16), bool)
    known[:, [0, 8]] = True  # and so the last latent is known in a quarter
    params = place(experiment.codec.frozen, None)["codec"]
    found = np.asarray(experiment.concat.make(experiment.codec, params, x, jnp.asarray(known)))
    f, h, w, _ = experiment.shape
    assert found.shape == (1, f, h, w, 9)
    np.testing.assert_array_equal(found[0, :, 0, 0, :4], [[1] * 4, [0] * 4, [0, 0, 0, 1]])
    shown = np.where(known[..., None], x, 128).astype(np.uint8)
    latents = experiment.codec.encode(params, jnp.asarray(shown))
    np.testing.assert_allclose(found[..., 4:], latents, atol=1e-5)
    with pytest.raises(UserError, match=r"concat.masks=3, and .* 4 frames; expected 1 or 4"):
        build({**causal, "concat": masked | {"masks": 3}})


def test_latents_that_were_encoded_beforehand_cannot_be_trained_on(causal):
    data = {"name": "noise", "shape": (3, 4, 4, 5)}
    experiment = build({**causal, "data": data, "concat": MASKED})
    batch = {"x": jnp.zeros((1, 3, 4, 4, 5))}
    with pytest.raises(
        UserError, match=r"latents that were encoded beforehand, and a section concat"
    ):
        experiment.show({}, batch, jax.random.key(0), jnp.arange(1))


@pytest.mark.parametrize(
    ("form", "name", "channels", "more"),
    [("unet", "UNet2DConditionModel", 9, 1), ("wan", "WanTransformer3DModel", 36, 4)],
)
def test_settings_of_networks_that_are_given_pictures_name_the_section(form, name, channels, more):
    out = (channels - more) // 2
    settings = {"_class_name": name, "in_channels": channels, "out_channels": out}
    told = config.resolve("interop", f"diffusers_{form}").sections({}, settings)
    section = told["concat"]
    assert section["name"] == "masked"
    assert section.get("masks", 1) == more
    assert section.get("marks", "known") == ("unknown" if form == "unet" else "known")
    made = config.resolve("concat", **section)
    assert made.more + out == told["model"]["concat_channels"]
    plain = {**settings, "in_channels": out}
    assert "concat" not in config.resolve("interop", f"diffusers_{form}").sections({}, plain)


def test_what_does_not_go_together_is_refused():
    objective = {"name": "denoise", "tasks": ("extend",)}
    for changes, message in (
        ({"objective": objective}, "got objective.tasks and a section concat"),
        (
            {"model": {**MODEL, "concat_channels": 5}},
            r"makes 4 channels, and network 'dit' takes 5",
        ),
        ({"concat": {"name": "masked", "tasks": ("data",)}}, "none whose masks are the data's"),
        ({"concat": {"name": "masked", "tasks": ()}}, "expected one task or more"),
        ({"concat": MASKED | {"tasks": ("extend:frames=5",)}}, "none of the tasks extend:frames=5"),
    ):
        with pytest.raises(UserError, match=message):
            made(**changes)
    plain = build({**TINY, "data": DATA, "model": MODEL})
    with pytest.raises(UserError, match="trained without a section concat"):
        Sampler(plain, Recipe(labels=(0,), known="channels"))


@pytest.mark.torch
@pytest.mark.parametrize("task", ["image_to_video", "in_between"])
def test_the_channels_are_those_of_the_pipeline_in_diffusers(task, causal, clips, monkeypatch):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKLWan.from_pretrained(causal["codec"]["path"]).eval()
    grey = 128 / 127.5 - 1  # a pixel of theirs may be 0, between two of uint8
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda _, *shape: torch.full(shape, grey))
    pipeline = types.SimpleNamespace(
        vae=vae,
        config=types.SimpleNamespace(expand_timesteps=False),
        vae_scale_factor_temporal=4,
        vae_scale_factor_spatial=4,
    )
    x = np.random.default_rng(2).integers(0, 256, (1, 9, 16, 24, 3), np.uint8)
    first, last = (torch.from_numpy(x[:, i] / 127.5 - 1).float().moveaxis(-1, 1) for i in (0, 8))
    data = {"name": "noise", "shape": x.shape[1:]}
    concat = {"name": "masked", "masks": 4, "tasks": (task,)}
    experiment = build({**causal, "data": data, "concat": concat})
    _, right = diffusers.WanImageToVideoPipeline.prepare_latents(
        pipeline,
        first,
        batch_size=1,
        num_channels_latents=5,
        height=16,
        width=24,
        num_frames=9,
        dtype=torch.float32,
        device="cpu",
        last_image=last if task == "in_between" else None,
    )
    params = place(experiment.codec.frozen, None)["codec"]
    batch = {"x": jnp.asarray(x)}
    found = experiment.show(params, batch, jax.random.key(0), jnp.arange(1))["concat"]
    np.testing.assert_allclose(found, np.moveaxis(right.detach().numpy(), 1, -1), atol=1e-4)
