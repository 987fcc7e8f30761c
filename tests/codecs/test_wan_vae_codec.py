"""The codec of causal video autoencoders: its files, its scale, its shapes, chunks and tiles."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wan_vae_cases as cases
from weights_files import write_json, write_safetensors

from dit import config, convert
from dit.interop import diffusers_wan_vae, wan_vae, wan_vae_original
from dit.interop.wan_vae_latents import PUBLISHED
from dit.parallel.frozen import place
from dit.types import UserError

SHAPE = (5, 8, 16, 3)
LAYOUTS = {"diffusers_wan_vae": diffusers_wan_vae, "wan_vae_original": wan_vae_original}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Directories of both kinds, and the authors' file of one."""
    root = tmp_path_factory.mktemp("wan_vae")
    for kind in cases.KINDS:
        cases.save(root / kind, kind)
    (root / "original").mkdir()
    write_safetensors(
        root / "original" / "vae.safetensors", cases.state_of("plain", "wan_vae_original")
    )
    return root


def open_codec(path, **options):
    return config.resolve("codecs", "wan_vae", path=str(path), **options)


def params_of(codec):
    return place({"codec": codec.weights}, None)["codec"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_weights_go_out_and_come_back_exactly(kind, layout):
    form, model, params = config.resolve("interop", layout), cases.make(kind), cases.params_of(kind)
    state = cases.state_of(kind, layout)
    assert wan_vae.describe(state, LAYOUTS[layout].NAMES) == model
    back = form.to_params(state, model, (1, 8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = form.to_state(back, model, (1, 8, 8, 3))
    assert again.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(again[name], state[name], err_msg=name)
    name = "encoder.head.0.gamma" if layout == "wan_vae_original" else "encoder.norm_out.gamma"
    assert state[name].shape == (state[name].size, 1, 1, 1)
    with pytest.raises(UserError, match=r"missing.*gamma"):
        form.to_params({k: x for k, x in state.items() if k != name}, model, (1, 8, 8, 3))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_names_are_those_of_the_authors(kind):
    names = cases.state_of(kind, "wan_vae_original").keys()
    known = {
        "plain": "decoder.upsamples.5.time_conv.weight",
        "shortcuts": "decoder.upsamples.1.upsamples.2.time_conv.weight",
    }
    more = {"encoder.middle.1.to_qkv.weight", "conv1.weight", "conv2.bias", known[kind]}
    assert more <= set(names)


@pytest.mark.slow
def test_clips_are_scaled_by_the_mean_and_std_of_each_channel_and_back(root):
    codec, told = open_codec(root / "plain"), cases.latents_of()
    chunked = open_codec(root / "plain", chunk=1)
    params, model = params_of(codec), cases.make("plain")
    x = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)

    @jax.jit
    def run(params, x):
        mean, logvar = model.apply({"params": params["network"]}, x / 127.5 - 1, method="encode")
        z, parts = codec.encode(params, x), chunked.encode(params, x)
        drawn = codec.encode(params, x, jax.random.key(0), jnp.arange(2))
        raw = model.apply({"params": params["network"]}, mean, method="decode")
        scaled, y = codec.encode(params, mean), chunked.decode(params, z)
        return mean, logvar, z, parts, drawn, scaled, y, raw

    mean, logvar, z, parts, drawn, scaled, y, raw = map(np.asarray, run(params, x))
    want = (mean - np.array(told["latents_mean"])) / np.array(told["latents_std"])
    for got in (z, parts, scaled):
        np.testing.assert_allclose(got, want, atol=1e-4)
    noise = (drawn - z) * told["latents_std"] / np.exp(logvar / 2)
    assert 0.7 < noise.std() < 1.3
    assert z.shape[1:] == codec.encoded_shape(SHAPE) == codec.encoded_shape(z.shape[1:])
    assert y.shape[1:] == codec.decoded_shape(z.shape[1:]) == SHAPE
    assert np.abs(y).max() <= 1
    np.testing.assert_allclose(y, raw.clip(-1, 1), atol=1e-4)


def test_the_authors_file_needs_a_scale_unless_it_is_of_a_published_size(root):
    file = root / "original" / "vae.safetensors"
    with pytest.raises(UserError, match=r"codec\.mean"):
        open_codec(file)
    mean, std = cases.latents_of().values()
    codec = open_codec(file, mean=tuple(mean), std=tuple(std))
    other = open_codec(root / "plain")
    jax.tree.map(np.testing.assert_array_equal, params_of(codec), params_of(other))
    z = jnp.ones((1, 1, 2, 2, 5))
    np.testing.assert_array_equal(codec.encode({}, z), other.encode({}, z))
    for size, (mean, std) in PUBLISHED.items():
        codec = config.resolve("codecs", "wan_vae", size=size)
        z = jnp.zeros((1, 1, 1, 1, len(mean)))
        np.testing.assert_allclose(codec.encode({}, z).ravel(), -np.divide(mean, std), rtol=1e-5)
        few = {16: 8, 48: 16}[len(mean)]
        assert codec.encoded_shape((17, 480, 832, 3)) == (5, 480 // few, 832 // few, len(mean))


def test_tiles_and_chunks_go_together(root):
    codec = open_codec(root / "shortcuts", chunk=1, tile=4)
    z = jax.ShapeDtypeStruct((1, 3, 8, 6, 5), jnp.float32)
    found = jax.eval_shape(codec.decode, codec.weights.abstract, z)
    assert found.shape[1:] == codec.decoded_shape(z.shape[1:]) == (9, 64, 48, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected either codec.path"),
        ({"size": "Wan2.1", "path": "{plain}"}, "expected either codec.path"),
        ({"path": "{plain}", "mean": (0.0,) * 5}, "expected both or neither"),
        ({"path": "{plain}", "mean": (0.0,) * 4, "std": (1.0,) * 5}, "expected 5 numbers"),
        ({"path": "{plain}", "mean": (0.0,) * 5, "std": (0.0,) * 5}, "positive"),
        ({"path": "{plain}", "which": "ema_1"}, "only a run has averages"),
        ({"path": "{other}"}, "is of a AutoencoderKL; expected"),
        ({"path": "{odd}"}, "num_res_blocks=7, and the weights"),
    ],
)
def test_what_does_not_go_together_is_refused(root, given, message):
    cases.save(root / "other", "plain", _class_name="AutoencoderKL")
    cases.save(root / "odd", "plain", num_res_blocks=7)
    names = {name: str(root / name) for name in ("plain", "other", "odd")}
    given = {k: v.format(**names) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(UserError, match=message):
        config.resolve("codecs", "wan_vae", **given)


def test_shapes_that_cannot_be_encoded_are_refused(root):
    codec = open_codec(root / "shortcuts")
    for shape in ((5, 12, 16, 3), (5, 16, 16, 4)):
        with pytest.raises(UserError, match="sides that 8 divides"):
            codec.encoded_shape(shape)
    with pytest.raises(UserError, match=r"clips of 6 frames.*give 1 \+ 4k frames, such as 5 or 9"):
        codec.encoded_shape((6, 16, 16, 3))


def test_it_is_converted_in_and_out_with_its_scale(root, tmp_path):
    run = tmp_path / "run"
    for step in (
        ["--from=diffusers_wan_vae", f"--weights={root / 'shortcuts'}"],
        ["--to=diffusers_wan_vae", f"--out={tmp_path / 'again'}"],
    ):
        convert.main([*step, f"--workdir={run}"])
    before, after = (
        json.loads((folder / "config.json").read_text())
        for folder in (root / "shortcuts", tmp_path / "again")
    )
    assert before == after
    first, second = (params_of(open_codec(path)) for path in (tmp_path / "again", run))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    z = jnp.ones((1, 1, 2, 2, 5))
    outs = [open_codec(path).encode({}, z) for path in (run, root / "shortcuts")]
    np.testing.assert_allclose(*outs, rtol=1e-6)
    pipeline = tmp_path / "pipeline"
    (pipeline / "transformer").mkdir(parents=True)
    cases.save(pipeline / "vae", "plain")
    assert convert.vae_of(pipeline / "transformer")["name"] == "wan_vae"
    write_json(pipeline / "vae" / "config.json", {"_class_name": "AutoencoderKL"})
    assert convert.vae_of(pipeline / "transformer")["name"] == "autoencoder_kl"
