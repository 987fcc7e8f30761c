"""Latents are stored as the codec's Gaussian, of pictures and of their mirror images."""

import dataclasses

import hostile
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit import encode, experiment, prepare
from dit.codecs import Codec
from dit.data import records
from dit.data.pipeline import batches
from dit.data.sources import records as source_of
from dit.parallel import frozen
from dit.types import UserError, Weights

W = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)


def halves(w=W):
    """A codec that averages 2x2 pixels and mixes channels; what is left of x is its spread."""

    def moments(params, x):
        b, f, h, w, c = x.shape
        x = (x.astype(jnp.float32) / 127.5 - 1).reshape(b, f, h // 2, 2, w // 2, 2, c)
        mean = x.mean((3, 5)) @ params["w"]
        grey = x.mean(-1)
        top = grey[:, :, :, 0].max((3, 4), keepdims=True)
        spread = x.std((3, 5)) @ jnp.abs(params["w"]) + jnp.where(top > 0.999, jnp.nan, 0)
        return mean, spread

    def encoded(params, x, key=None, ids=None):
        mean = moments(params, x)[0] if x.dtype == jnp.uint8 else x.astype(jnp.float32)
        return (mean - 0.5) * 2.0

    def encoded_shape(shape):
        f, h, w, c = shape
        if c == 3 and (h % 2 or w % 2):
            raise UserError(f"got {shape}; expected even sides")
        return (f, h // 2, w // 2, 5) if c == 3 else shape

    weights = Weights.of({"w": w}, "the weights of 'halves'")
    decode = lambda params, z: z @ params["w"].T  # noqa: E731
    return Codec(encoded, decode, encoded_shape, weights=weights, moments=moments)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "resolve", lambda room, name, **k: halves())
    root = tmp_path / "in"
    root.mkdir()
    for i in range(20):
        shape = (8, 8) if i % 3 else (8, 12)
        Image.fromarray(hostile.noise(i, *shape) // 2).save(root / f"{i:02}.png")
    white = np.zeros((8, 8, 3), np.uint8)
    white[0, 0] = 255
    Image.fromarray(white).save(root / "white.png")
    return root


def run(root, out, *argv):
    argv = [f"--source={root}", "--size=8x8,8x12", "--held-out=0.3", *argv]
    prepare.main([*argv, f"--out={out}", "--workers=0", "--codec=halves"])
    return source_of.build(path=str(out)), records.read_manifest(out)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_latents_are_the_codecs_and_spoilt_ones_are_listed(tmp_path, drawn, dtype):
    argv = ("--flip", f"--encoded={dtype}", "--batch=4")
    source, manifest = run(drawn, tmp_path / "out", *argv)
    assert (
        '"white.png", "reason": "its std has values' in (tmp_path / "out/broken.jsonl").read_text()
    )
    plain = tmp_path / "plain"
    prepare.main(
        [f"--source={drawn}", "--size=8x8,8x12", "--held-out=0.3", f"--out={plain}", "--workers=0"]
    )
    codec, pixels = halves(), source_of.build(path=str(plain))
    known = {}
    for split in (pixels.train, pixels.held_out):
        for i in range(len(split)):
            x = split[i]["x"]
            mean, std = codec.moments({"w": W}, x[None])
            if np.isfinite(np.asarray(std)).all():
                back = codec.moments({"w": W}, x[None, :, :, ::-1])
                known[np.asarray(mean[0], dtype).tobytes()] = (
                    mean[0],
                    std[0],
                    *(b[0] for b in back),
                )
    assert source.shapes == ((1, 4, 4, 5), (1, 4, 6, 5))
    near = {"rtol": 2e-3, "atol": 2e-3} if dtype == "float16" else {"rtol": 1e-5, "atol": 1e-5}
    means, spreads = [], []
    flipping = source_of.build(path=str(tmp_path / "out"), flip=True)
    for split, mine in ((flipping.train, True), (source.held_out, False)):
        for i in range(len(split)):
            example = split[i]
            assert example["x"].dtype == dtype
            parts = next(k for k in known.values() if fits(k[0], example["x"], near))
            if not mine:
                assert set(example) == {"x"}
                continue
            given = (example["x"], example["std"], *example["mirrored"].values())
            for want, got in zip(parts, given, strict=True):
                np.testing.assert_allclose(got, want, **near)
            means.append(parts[0].reshape(-1, 5)), spreads.append(parts[1].reshape(-1, 5))
    mean, std = np.concatenate(means), np.concatenate(spreads)
    np.testing.assert_allclose(manifest["statistics"]["mean"], mean.mean(0), **near)
    total = ((mean**2 + std**2).mean(0) - mean.mean(0) ** 2) ** 0.5
    np.testing.assert_allclose(manifest["statistics"]["std"], total, **near)


def fits(want, got, near):
    return want.shape == got.shape and np.allclose(want, got, **near)


def test_every_visit_draws_anew_from_one_of_the_sides(tmp_path, drawn):
    run(drawn, tmp_path / "out", "--flip", "--encoded=float32")
    train = source_of.build(path=str(tmp_path / "out"), flip=True).train
    stream = batches(train, batch_size=2, seed=0, shuffle=False)
    first = train[0]
    n, draws, sides = train.bucket_sizes[0], [], []
    for epoch in range(60):
        batch = stream.look([epoch * n])
        assert set(batch) == {"x", "id"}
        x = batch["x"][0]
        side = [(x - s["x"]) / np.maximum(s["std"], 1e-6) for s in (first, first["mirrored"])]
        sides.append(int(np.argmin([np.abs(z).mean() for z in side])))
        draws.append(side[sides[-1]])
    assert 15 < sum(sides) < 45
    z = np.stack(draws)
    assert abs(z.mean()) < 0.1
    assert abs(z.std() - 1) < 0.1


def test_other_weights_and_records_without_mirror_images_are_refused(tmp_path, drawn, monkeypatch):
    source, manifest = run(drawn, tmp_path / "out")
    with pytest.raises(UserError, match="prepare the records again with --flip"):
        source_of.build(path=str(tmp_path / "out"), flip=True)
    identity = manifest["fields"]["latents"]["codec"]["weights"]
    assert source.codec == source.bucket(1).codec == identity
    config = {
        **{"data": {"name": "records", "path": str(tmp_path / "out")}, "codec": {"name": "pixel"}},
        **{"seed": 0, "steps": 1, "batch_size": 2, "path": {"name": "linear"}},
        **{"prediction": {"name": "velocity"}, "times": {"name": "uniform"}},
        **{"objective": {"name": "denoise"}, "optimizer": {"name": "adamw", "lr": 1e-3}},
        "model": {"name": "dit", "depth": 1, "width": 8, "heads": 2, "patch": 2},
    }
    section = experiment._section
    for weights, message in ((W, None), (W + 1, "run, or its data, were made with")):
        codec = halves(weights)
        instead = lambda c, n, codec=codec, **k: codec if n == "codec" else section(c, n, **k)  # noqa: E731
        monkeypatch.setattr(experiment, "_section", instead)
        built = experiment.build(config)
        assert built.shapes == source.shapes
        if message is None:
            frozen.place(built.frozen, None)
            continue
        with pytest.raises(UserError, match=message):
            frozen.place(built.frozen, None)


def test_a_codec_without_latents_of_its_own_is_refused(tmp_path, drawn, monkeypatch):
    with pytest.raises(UserError, match="expected even sides"):
        prepare.main([f"--source={drawn}", "--size=9", f"--out={tmp_path / 'o'}", "--codec=halves"])
    bare = dataclasses.replace(halves(), moments=None)
    monkeypatch.setattr(encode, "resolve", lambda room, name, **k: bare)
    with pytest.raises(UserError, match="expected an autoencoder"):
        run(drawn, tmp_path / "out")
    with pytest.raises(UserError, match="--flip without --codec"):
        prepare.main([f"--source={drawn}", "--size=8", f"--out={tmp_path / 'o'}", "--flip"])


def test_several_encoders_add_and_the_first_reason_counts():
    class Fixed:
        def __init__(self, fields, replaces, made):
            self.fields, self.replaces, self.made = fields, replaces, made

        def __call__(self, examples):
            return self.made

    one = Fixed({"a": 1}, ("image",), [{"x": 1}, "bad", {"x": 3}])
    two = Fixed({"b": 2}, (), [{"y": 1}, "worse", "none"])
    both = encode.Several([one, two])
    assert (both.fields, both.replaces) == ({"a": 1, "b": 2}, ("image",))
    assert both([{}] * 3) == [{"x": 1, "y": 1}, "bad", "none"]
