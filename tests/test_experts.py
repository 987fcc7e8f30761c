"""Two networks in one sampling run, by command: Wan 2.2's from a pipeline's directory, or two runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved_run
from PIL import Image

from dit import convert, draw, evaluate, experts, rng, sample, train
from dit.recipe import Recipe
from dit.sampling.sample import initial_noise
from dit.types import UserError

WAN = {  # as diffusers writes it
    "_class_name": "WanTransformer3DModel",
    **{"patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 12},
    **{"in_channels": 4, "out_channels": 4, "text_dim": 7, "freq_dim": 256, "ffn_dim": 49},
    **{"num_layers": 2, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"},
    **{"eps": 1e-6, "image_dim": None, "added_kv_proj_dim": None, "pos_embed_seq_len": None},
}
BOUNDARY, STEPS, SHIFT, SHAPE = 0.8, 10, 5.0, (3, 4, 6, 4)


@pytest.mark.torch
def test_ten_steps_of_a_converted_pipeline_are_those_of_diffusers(tmp_path, capsys):
    """With another guidance scale for each network; by the workdir of both and by two workdirs."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    parts = {}
    for name in ("transformer", "transformer_2"):
        parts[name] = diffusers.WanTransformer3DModel.from_config(WAN)
        for key, p in parts[name].named_parameters():
            shift = 1 if "norm" in key and key.endswith("weight") else 0
            p.data = 0.2 * torch.randn_like(p) + shift
        parts[name].save_pretrained(tmp_path / "pipe" / name)
    told = {"_class_name": "WanPipeline", "boundary_ratio": BOUNDARY}
    (tmp_path / "pipe/model_index.json").write_text(json.dumps(told))
    codec = ["--config.codec.name=latent", "--config.codec.scale=1.0"]
    both, high, low = (f"{tmp_path}/{name}" for name in ("both", "high", "second"))
    for weights, workdir in (
        ("pipe", both),
        ("pipe/transformer", high),
        ("pipe/transformer_2", low),
    ):
        asked = [f"--weights={tmp_path / weights}", f"--workdir={workdir}", *codec]
        convert.main(["--from=diffusers_wan", *asked])
    context = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)
    np.savez(tmp_path / "cond.npz", context=context)
    grid = f"shifted:shift={SHIFT},base=linspace,last={SHIFT / (1000 + SHIFT - 1)}"
    usual = [f"--cond={tmp_path}/cond.npz", "--num=2", f"--steps={STEPS}", f"--grid={grid}"]
    usual += ["--solver=euler", "--guidance=4", "--size=4x6", "--frames=3", "--seed=3"]

    def drawn(workdir, *more):
        sample.main([f"--workdir={workdir}", *usual, *more, f"--out={tmp_path}/x.npz"])
        return np.load(tmp_path / "x.npz")["samples"]

    found = drawn(both, "--low-guidance=2")
    assert "20 network evaluations each" in capsys.readouterr().out

    path = draw.load_experiment(high).process.path
    keys = rng.per_sample(rng.stream(rng.root(3), "sample"), jnp.arange(2))
    noise = torch.tensor(np.asarray(initial_noise(keys, SHAPE, path))).permute(0, 4, 1, 2, 3)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipeline = diffusers.WanPipeline(None, None, None, scheduler, **parts, boundary_ratio=BOUNDARY)
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    want = pipeline(
        prompt_embeds=torch.tensor(context),
        negative_prompt_embeds=torch.zeros(2, 5, 7),
        latents=noise,
        **{"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": STEPS},
        **{"guidance_scale": 4.0, "guidance_scale_2": 2.0, "output_type": "latent"},
    ).frames
    want = want.permute(0, 2, 3, 4, 1).numpy()
    above = seen.count("transformer")
    assert 0 < above < len(seen) == 2 * STEPS
    np.testing.assert_allclose(found, want, atol=1e-3 * np.abs(want).max())

    options = [f"--low={low}", f"--boundary={BOUNDARY}", "--low-guidance=2"]
    np.testing.assert_array_equal(drawn(high, *options), found)
    drawn(both, "--low-guidance=1")
    assert f"{STEPS + above // 2} network evaluations each" in capsys.readouterr().out


def test_a_pipeline_that_does_not_say_where_its_second_network_begins_is_refused(tmp_path):
    for name in ("transformer", "transformer_2"):
        (tmp_path / name).mkdir()
    for told, message in (
        (None, "no model_index.json"),
        ({}, "boundary_ratio=None; expected a time"),
        ({"boundary_ratio": 875}, "boundary_ratio=875; expected a time between 0 and 1"),
    ):
        if told is not None:
            (tmp_path / "model_index.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match=message):
            convert.second_of(str(tmp_path), tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.9}))
    assert convert.second_of(str(tmp_path), tmp_path / "transformer")[1] == 0.9
    assert convert.second_of(str(tmp_path / "transformer"), tmp_path / "transformer") is None


DIGITS = {"name": "digits"}


@pytest.mark.slow
def test_networks_that_are_not_alike_do_not_share_a_run(tmp_path):
    own = saved_run.save(tmp_path / "own", DIGITS)
    saved_run.save(tmp_path / "wide", DIGITS, model={**saved_run.TINY["model"], "width": 32})
    saved_run.save(tmp_path / "eps", DIGITS, prediction={"name": "v"})
    recipe = Recipe(num=1, low=str(tmp_path / "own"), boundary=0.5)
    abstract = jax.eval_shape(own.init, rng.root(0))
    assert jax.tree.map(lambda x: x.shape, experts.weights(own, recipe)["low"].abstract) == (
        jax.tree.map(lambda x: x.shape, abstract)
    )
    for name, section in (("wide", "model"), ("eps", "prediction")):
        other = dataclasses.replace(recipe, low=str(tmp_path / name))
        with pytest.raises(UserError, match=f"{name} has another {section} than this one"):
            experts.weights(own, other)


@pytest.mark.slow
def test_each_trains_on_its_own_times_and_both_draw_together(tmp_path, capsys):
    text = {**saved_run.TINY, "data": DIGITS, "samples": {"every": 0, "num": 0}}
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {text!r}\n")
    for name, edge in (("high", "low"), ("low", "high")):
        times = ["name=within", "of=shifted:shift=5", f"{edge}=0.875"]
        asked = [f"--config.times.{option}" for option in times]
        usual = [f"--config={tmp_path}/config.py", "--config.steps=2", "--config.optimizer.lr=0.01"]
        assert train.main([*usual, f"--workdir={tmp_path / name}", *asked]) in (0, None)
    base = ["--labels=1,2", "--steps=6", "--solver=euler", "--grid=shifted:shift=5"]

    def drawn(out, *more):
        sample.main([*base, *more, f"--out={tmp_path / out}"])
        return np.asarray(Image.open(tmp_path / out))

    high = [f"--workdir={tmp_path}/high"]
    both = [*high, f"--low={tmp_path}/low", "--boundary=0.875"]
    found = drawn("both.png", *both, "--guidance=3", "--low-guidance=1")
    assert f"{6 + 3} network evaluations" in capsys.readouterr().out  # t: 1, .96, .91, .83, ...
    assert (found != drawn("high.png", *high)).any()
    like = [f"--like={tmp_path}/both.png", *high]
    np.testing.assert_array_equal(drawn("again.png", *like), found)
    one = drawn("one.png", *both[:2], "--boundary=2")  # the other alone
    np.testing.assert_array_equal(one, drawn("low.png", f"--workdir={tmp_path}/low"))
    asked = ["--num=16", "--steps=2", f"--out={tmp_path}/evaluation.json", "--low-guidance=2"]
    evaluate.main([*both, *asked])
    recipe = json.loads((tmp_path / "evaluation.json").read_text())["recipe"]
    assert (recipe["low"], recipe["boundary"]) == (f"{tmp_path}/low", 0.875)
