"""LoRAs of Wan, LTX-Video and Stable Diffusion's U-Net in files: every map, every layout's names."""

import jax.numpy as jnp
import numpy as np
import pytest
from lora_cases import check_format
from models_cases import params_of, run
from wan_cases import SETTINGS, format_of

from dit import carry, config, convert, draw
from dit.interop import folder
from dit.interop import lora as layouts
from dit.parallel.frozen import place as place_frozen
from dit.parallel.mesh import mesh_of
from dit.training import lora
from dit.types import Cond, UserError

SHAPES = {"wan": (3, 4, 6, 4), "ltx": (3, 2, 5, 4), "unet": (1, 8, 8, 4)}
TEXT = {"context_dim": 7, "in_channels": 4, "depth": 2}
NETWORKS = {
    "wan": ("wan", {"size": "Wan2.1-FLF2V-14B", "concat_channels": 3, "image_context": (4, 6)}),
    "ltx": ("wan", {"size": "LTX-Video-0.9-2B"}),
    "unet": ("unet", {"size": "SD-1.5", "concat_channels": 3}),
}
SIZES = {"wan": {"width": 36, "heads": 3}, "ltx": {"width": 16, "heads": 2}}
SIZES["unet"] = {"width": 8, "multipliers": (1, 2), "depth": 1, "attention_levels": (0,)}
SIZES["unet"] |= {"heads": 2, "norm_groups": 4}
FORMATS = [
    (k, f"{way}_{k}" if way == "diffusers" else f"{k}_{way}")
    for k in NETWORKS
    for way in ("diffusers", "original")
]


def network(kind):
    """A tiny network, and parameters none of which is zero."""
    name, options = NETWORKS[kind]
    model = config.resolve("models", name, **options | TEXT | SIZES[kind])
    return model, params_of(model, SHAPES[kind], noise=0.2)


@pytest.mark.first
@pytest.mark.parametrize(("kind", "format"), FORMATS)
def test_every_map_goes_out_and_in_and_under_the_names_of_other_tools_too(kind, format):
    model, params = network(kind)
    form, shape = config.resolve("interop", format), SHAPES[kind]
    file, expected = check_format(model, params, shape, form)
    names = carry.names_of(form, model, shape)
    behind = layouts.kohya(file, 1.5)
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.ones((2, 3))}
    other = {
        n.replace(".lora_A.", ".lora_down.").replace(".lora_B.", ".lora_up."): x
        for n, x in file.items()
    }
    bare = {n.removeprefix(f"{form.part}."): x for n, x in file.items()}
    comfy = {f"diffusion_model.{n}": x for n, x in bare.items()}
    peft = {f"base_model.model.{n}": x for n, x in bare.items()}
    for state, factor, beside in (
        (behind | text, 1.5, 1),
        (other, 1, 0),
        (bare, 1, 0),
        (comfy, 1, 0),
        (peft, 1, 0),
    ):
        assert layouts.is_lora(state)
        read = layouts.read(state, {}, names)
        assert (read.rank, read.alpha, len(read.beside)) == (2, 2 * factor, beside)
        assert read.targets == expected.targets
        for name, x in expected.pairs.items():
            np.testing.assert_array_equal(read.pairs[name], x, err_msg=name)
    odd = next(n for n in behind if n.endswith("down.weight"))
    for state, message in (
        (
            {odd.replace("lora_unet_", "lora_unet_x"): behind[odd]},
            "of no linear map of this network",
        ),
        ({odd: behind[odd]}, "lacks lora_A or lora_B"),
        (text, "adapts text encoders alone"),
    ):
        with pytest.raises(UserError, match=message):
            layouts.read(state, {}, names)


# --- by command, in diffusers too ----------------------------------------------------------------


def out_of(workdir, arrays):
    """The output of a LoRA run's network."""
    experiment = draw.load_experiment(str(workdir))
    pairs = draw.load_params(experiment, str(workdir), None, None).params
    base = place_frozen(experiment.frozen, mesh_of(pairs))["base"]
    cond = Cond(**{k: v for k, v in arrays.items() if k not in ("x", "t")})
    out = run(experiment.model, lora.join(base, pairs), arrays["x"], arrays["t"], cond)
    return np.asarray(out), experiment


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["i2v", "ltx"])
def test_an_adapter_of_diffusers_comes_in_and_goes_back_out_to_it(kind, tmp_path):
    """Of every map that PEFT adapts, by command: the same outputs within 2e-5, on both ways."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    other = getattr(diffusers, SETTINGS[kind]["_class_name"]).from_config(SETTINGS[kind]).eval()
    for key, p in other.named_parameters():  # all of them: zeros would hide what follows
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in key and key.endswith("weight") else 0)
    other.save_pretrained(tmp_path / "theirs")
    own, form = SHAPES["ltx" if kind == "ltx" else "wan"], format_of(kind)
    codec, base = ["--config.codec.name=latent", "--config.codec.scale=1.0"], f"{tmp_path}/base"
    convert.main([f"--from={form}", f"--weights={tmp_path}/theirs", f"--workdir={base}", *codec])

    arrays, told = given(kind, own, torch)
    before = theirs_of(kind, other, told, torch)
    kinds = (torch.nn.Linear, torch.nn.Conv3d)
    maps = [name for name, module in other.named_modules() if isinstance(module, kinds)]
    other.add_adapter(peft.LoraConfig(r=2, lora_alpha=3, target_modules=maps), "own")
    for key, p in other.named_parameters():
        if "lora_" in key:
            p.data = 0.3 * torch.randn_like(p)
    want = theirs_of(kind, other, told, torch)
    top = np.abs(want).max()
    assert np.abs(want - before).max() > 0.1 * top
    other.save_lora_adapter(tmp_path / "own", adapter_name="own")
    other.unload_lora()

    def bring(name, weights, to):
        asked = [f"--weights={tmp_path / weights}", f"--base={base}", f"--workdir={tmp_path / to}"]
        convert.main([f"--from={name}", *asked])
        found, experiment = out_of(tmp_path / to, arrays)
        np.testing.assert_allclose(found, want, atol=2e-5 * top, err_msg=str(weights))
        return experiment.lora

    assert bring(form, "own", "run").scale == pytest.approx(1.5)
    original = form.replace("diffusers_", "") + "_original"
    ways = {"form": (form,), "original": (original,), "kohya": (original, "--kohya")}
    for way, (name, *extra) in ways.items():
        file = tmp_path / f"{way}.safetensors"
        convert.main([f"--to={name}", f"--workdir={tmp_path}/run", f"--out={file}", *extra])
    bring(original, "kohya.safetensors", "back")
    pipeline = diffusers.LTXPipeline if kind == "ltx" else diffusers.WanPipeline
    state, settings = pipeline.lora_state_dict(
        tmp_path, weight_name="form.safetensors", return_lora_metadata=True
    )
    other.load_lora_adapter(state, prefix="transformer", metadata=settings)
    found = theirs_of(kind, other, told, torch)
    np.testing.assert_allclose(found, want, atol=2e-5 * top)
    # Of the other files its converters take what is in the blocks.
    sums = products(state, 1.5)
    for way in ("original", "kohya")[: 1 if kind == "ltx" else 2]:
        file = folder.opened(str(tmp_path / f"{way}.safetensors"))[0]
        part = {n: torch.tensor(np.asarray(x)) for n, x in file.items() if "blocks" in n}
        found = products(pipeline.lora_state_dict(part), 1.0)
        assert {f"transformer.{n}" for n in maps if "blocks" in n} == found.keys() < sums.keys()
        for module, x in found.items():
            np.testing.assert_allclose(x, sums[module], atol=1e-5, err_msg=module)


def products(state, scale):
    """``B A`` times a factor, by module."""
    modules = [n.removesuffix(layouts.A) for n in state if n.endswith(layouts.A)]
    return {
        m: scale * (state[m + layouts.B].flatten(1) @ state[m + layouts.A].flatten(1)).numpy()
        for m in modules
    }


def given(kind, shape, torch):
    """Our arrays, and the same of theirs."""
    draws, batch = np.random.default_rng(0), 2
    length = 512 if kind == "i2v" else 5  # by which that library tells text from image
    sizes = {"x": shape, "context": (length, 7)}
    if kind == "i2v":
        sizes |= {"concat": (*shape[:3], 5), "image_context": (257, 6)}
    arrays = {k: draws.standard_normal((batch, *v)).astype(np.float32) for k, v in sizes.items()}
    arrays["t"] = np.array([13.0, 125.0], np.float32)
    told = {k: torch.tensor(v) for k, v in arrays.items()}
    return {k: jnp.asarray(v) for k, v in arrays.items()}, told


def theirs_of(kind, other, told, torch):
    """The output of diffusers' network, laid out as ours."""
    x, t, context = (told[k] for k in ("x", "t", "context"))
    with torch.no_grad():
        if kind == "i2v":
            video = torch.cat([x, told["concat"]], -1).permute(0, 4, 1, 2, 3)
            return (
                other(video, t, context, told["image_context"])
                .sample.permute(0, 2, 3, 4, 1)
                .numpy()
            )
        sizes = dict(zip(("num_frames", "height", "width"), x.shape[1:4], strict=True))
        mask = torch.ones(context.shape[:2], dtype=torch.bool)
        more = {"rope_interpolation_scale": (8 / 25, 32, 32), **sizes}
        return other(x.flatten(1, 3), context, t, mask, **more).sample.reshape(x.shape).numpy()
