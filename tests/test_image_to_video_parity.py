"""From a picture to a clip by command, with a pipeline's weights, as the library does that made them."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_experts import WAN

from dit import convert, draw, embed, rng, sample
from dit.sampling.sample import initial_noise

pytestmark = pytest.mark.torch
SIZE, FRAMES, STEPS, SHIFT = (32, 48), 5, 4, 3.0
LATENTS = (2, 4, 6, 4)
TEXT = 512  # tokens: the library takes all that come after so many for those of a picture


VISION = {  # of CLIP's image tower: 257 tokens of 6 channels
    **{"hidden_size": 6, "intermediate_size": 12, "num_hidden_layers": 3, "image_size": 64},
    **{"num_attention_heads": 2, "patch_size": 4, "projection_dim": 5, "hidden_act": "gelu"},
}


def tower(torch, folder):
    """The part of a pipeline that sees a picture, with random weights; in ``folder`` too."""
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(folder)
    side = {"height": VISION["image_size"], "width": VISION["image_size"]}
    processor = transformers.CLIPImageProcessorPil(size=side, do_center_crop=False)
    return {"image_processor": processor, "image_encoder": model}


@pytest.mark.parametrize("last", [False, True], ids=["first", "first and last"])
@pytest.mark.parametrize("seen", [False, True], ids=["2.2", "2.1"])
def test_a_converted_pipeline_goes_on_from_pictures_as_in_diffusers(
    seen, last, tmp_path, monkeypatch
):
    """``seen``: the network is told what CLIP's image tower makes of the pictures, too."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    told = {"image_dim": 6, "added_kv_proj_dim": 24} if seen else {}
    told |= {"pos_embed_seq_len": 514} if seen and last else {}
    transformer = diffusers.WanTransformer3DModel.from_config(WAN | {"in_channels": 12} | told)
    for key, p in transformer.named_parameters():
        shift = 1 if "norm" in key and key.endswith("weight") else 0
        p.data = 0.2 * torch.randn_like(p) + shift
    scale = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 0.8]}
    levels = {"num_res_blocks": 1, "base_dim": 8, "dim_mult": [1, 2, 2, 2], "z_dim": 4}
    vae = diffusers.AutoencoderKLWan(**levels, **scale)
    for name, part in {"transformer": transformer, "vae": vae}.items():
        part.save_pretrained(tmp_path / "pipe" / name)
    convert.main(
        [
            "--from=diffusers_wan",
            f"--weights={tmp_path}/pipe",
            f"--workdir={tmp_path}/run",
            "--config.concat.tasks=in_between" if last else "--config.seed=0",
        ]
    )
    draws = np.random.default_rng(0)
    context = draws.standard_normal((1, TEXT, 7)).astype(np.float32)
    pictures, conditions = {}, {"context": context}
    for name in ("image", "last") if last else ("image",):
        coarse = Image.fromarray(draws.integers(0, 256, (4, 6, 3), np.uint8))
        pictures[name] = coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)
        pictures[name].save(tmp_path / f"{name}.png")
    beside = {"image_processor": None, "image_encoder": None}
    files = [f"--{name}={tmp_path}/{name}.png" for name in pictures]
    if seen:
        beside = tower(torch, tmp_path / "pipe/image_encoder")
        vision = [f"--vision={tmp_path}/pipe/image_encoder", f"--out={tmp_path}/seen.npz"]
        embed.main([*vision, *files])
        conditions |= np.load(tmp_path / "seen.npz")
    np.savez(tmp_path / "cond.npz", **conditions)
    end = SHIFT / (1000 + SHIFT - 1)
    sample.main(
        [
            *files,
            *(f"--workdir={tmp_path}/run", f"--cond={tmp_path}/cond.npz", f"--steps={STEPS}"),
            *("--num=1", f"--grid=shifted:shift={SHIFT},base=linspace,last={end}", "--guidance=3"),
            *("--size=32x48", f"--frames={FRAMES}", "--seed=3", f"--out={tmp_path}/x.npz"),
        ]
    )
    found = np.load(tmp_path / "x.npz")["samples"][0]

    path = draw.load_experiment(f"{tmp_path}/run").process.path
    keys = rng.per_sample(rng.stream(rng.root(3), "sample"), jnp.arange(1))
    noise = torch.tensor(np.asarray(initial_noise(keys, LATENTS, path))).permute(0, 4, 1, 2, 3)
    pipeline = diffusers.WanImageToVideoPipeline(
        None,
        None,
        vae.eval(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=transformer.eval(),
        **beside,
    )
    pipeline.set_progress_bar_config(disable=True)
    grey = 128 / 127.5 - 1  # a pixel of theirs may be 0, between two of uint8
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda _, *shape: torch.full(shape, grey))
    want = pipeline(
        pictures["image"],
        last_image=pictures.get("last"),
        prompt_embeds=torch.tensor(context),
        negative_prompt_embeds=torch.zeros(1, TEXT, 7),
        latents=noise,
        **{"height": SIZE[0], "width": SIZE[1], "num_frames": FRAMES},
        **{"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"},
    ).frames[0]
    drawn = slice(1, -1 if last else None)  # what is given comes back as it went in
    assert np.std(want[drawn]) > 0.05
    np.testing.assert_allclose(found[drawn], 255 * want[drawn], atol=1)
    for name, place in zip(pictures, (0, -1), strict=False):
        np.testing.assert_array_equal(found[place], np.asarray(pictures[name]))
