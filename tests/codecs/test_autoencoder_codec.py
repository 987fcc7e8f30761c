"""Codecs with an autoencoder's weights: their scales, their noise, and decoding in tiles."""

import functools

import autoencoder_files as made
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config
from dit.codecs import autoencoder_kl, autoencoder_tiles
from dit.parallel.frozen import place
from dit.types import UserError

SHAPE = (1, 4, 8, 3)


@functools.cache
def opened(root, kind, **options):
    """A codec, its parameters and its network."""
    model, _ = made.save(root / kind, kind)
    codec = config.resolve("codecs", "autoencoder_kl", path=str(root / kind), **options)
    return codec, place({"codec": codec.weights}, None)["codec"], model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("codecs")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("family", autoencoder_kl.FAMILIES)
def test_the_scale_of_every_family_and_back(family):
    rule, z = autoencoder_kl.FAMILIES[family], normal(2, 1, 4, 6, 32)
    state = made.beside("flux2")
    mean, variance = state["bn.running_mean"], state["bn.running_var"]
    params = {"statistics": {"mean": mean, "variance": variance}}
    got = autoencoder_kl.scaled(rule, params, z)
    if family == "flux2":  # channel c, row p and column q of every 2x2 are one channel
        assert got.shape == (2, 1, 2, 3, 128)
        for c, p, q in ((0, 0, 0), (3, 0, 1), (3, 1, 0), (31, 1, 1)):
            i = c * 4 + p * 2 + q
            want = (z[:, :, p::2, q::2, c] - mean[i]) / np.sqrt(variance[i] + 1e-4)
            np.testing.assert_allclose(got[..., i], want, atol=1e-6)
    else:
        scale, shift = {"sdxl": (0.13025, None), **made.SCALES}[family]
        np.testing.assert_allclose(got, (z - (shift or 0)) * scale, atol=1e-6)
    np.testing.assert_allclose(autoencoder_kl.unscaled(rule, params, got), z, atol=1e-5)


def test_each_channel_may_have_its_own_scale():
    rule = autoencoder_kl.Rule((2.0, 4.0), (1.0, -1.0))
    z = jnp.ones((1, 1, 1, 1, 2))
    np.testing.assert_allclose(autoencoder_kl.scaled(rule, {}, z).ravel(), [0, 8])


def test_pictures_are_encoded_with_noise_of_their_own_and_latents_only_scaled(root):
    codec, params, model = opened(root, "tiny")
    x = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    draw = jax.jit(lambda params, x, ids: codec.encode(params, x, jax.random.key(0), ids))

    @jax.jit
    def run(params, x):
        own = {"params": params["network"]}
        mean, logvar = model.apply(own, x / 127.5 - 1, method="encode")
        z = codec.encode(params, mean)
        return mean, logvar, z, codec.decode(params, z), model.apply(own, mean, method="decode")

    mean, logvar, got, back, raw = (np.asarray(a) for a in run(params, x))
    assert got.shape[1:] == codec.encoded_shape(SHAPE)
    assert codec.decoded_shape(got.shape[1:]) == SHAPE
    np.testing.assert_allclose(got, (mean - 0.5) * 2, atol=1e-5)
    np.testing.assert_allclose(back, raw.clip(-1, 1), atol=2e-4)
    drawn = np.asarray(draw(params, x, jnp.arange(3)))
    noise = (drawn - got) / 2 / np.exp(logvar / 2)
    assert abs(noise.mean()) < 0.3
    assert 0.7 < noise.std() < 1.3
    np.testing.assert_allclose(draw(params, x[::-1], jnp.arange(3)[::-1])[::-1], drawn, atol=1e-5)


def test_shapes_and_types_that_cannot_be_encoded_are_refused(root):
    codec, params, _ = opened(root, "flux2")
    for shape in ((1, 6, 8, 3), (1, 8, 8, 4), (1, 3, 4, 32)):
        with pytest.raises(UserError, match="sides"):
            codec.encoded_shape(shape)
    assert (
        codec.encoded_shape((1, 4, 8, 32)) == codec.encoded_shape((1, 8, 16, 3)) == (1, 2, 4, 128)
    )
    assert codec.decoded_shape((1, 2, 4, 128)) == (1, 8, 16, 3)
    x = jnp.zeros((1, 1, 8, 16, 3), jnp.uint8)
    assert jax.eval_shape(codec.encode, params, x).shape[1:] == (1, 2, 4, 128)
    with pytest.raises(UserError, match="expected uint8 pixels with 3"):
        codec.encode(params, x.astype(jnp.float32))


def test_data_with_as_many_channels_as_the_latents_are_pixels(root):
    codec, params, _ = opened(root, "three", scale=1.0)
    assert codec.encoded_shape(SHAPE) == (1, 2, 4, 3)
    x = jnp.zeros((1, *SHAPE), jnp.uint8)
    assert jax.eval_shape(codec.encode, params, x).shape[1:] == (1, 2, 4, 3)
    with pytest.raises(UserError, match="its latents have as many channels, and are not taken"):
        codec.encode(params, x.astype(jnp.float32))


@pytest.mark.parametrize(("size", "tile"), [(8, 8), (9, 4), (31, 8), (16, 12), (5, 8)])
def test_the_weights_of_tiles_add_up_to_one(size, tile):
    begins, side = autoencoder_tiles.starts(size, tile), min(size, tile)
    assert (begins[0], begins[-1]) == (0, size - side)
    assert (np.diff(begins) <= side - side // 4).all()
    total = np.zeros(size * 2)
    shares = autoencoder_tiles.weights(size, tile, begins, 2)
    for begin, share in zip(begins, shares, strict=True):
        assert (share >= 0).all()
        total[begin * 2 : (begin + side) * 2] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_local_decoder_in_tiles_is_that_of_the_whole():
    """But for where a tile's edge, with its small weight, is not the picture's."""
    z = normal(2, 1, 13, 18, 4)

    def pixelwise(z):
        return jnp.tanh(z[..., :3]).repeat(2, axis=2).repeat(2, axis=3)

    def blurred(z):
        z = jnp.pad(z, ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0)))
        return pixelwise(z[:, :, :-2] / 4 + z[:, :, 1:-1] / 2 + z[:, :, 2:] / 4)

    @jax.jit
    def run(z):
        return [autoencoder_tiles.decode(local, z, 8, 2) for local in (pixelwise, blurred)]

    plain, soft = run(z)
    np.testing.assert_allclose(plain, pixelwise(z), atol=1e-6)
    apart = np.abs(np.asarray(soft - blurred(z))).max((0, 1, 3, 4))
    begins = autoencoder_tiles.starts(13, 8)
    edges = {row for b in begins for row in (2 * b, 2 * b + 1, 2 * b + 14, 2 * b + 15)}
    inside = [i for i in range(26) if i not in edges]
    assert apart[inside].max() < 1e-6
    assert apart.max() < 0.25


def test_tiles_are_for_large_latents_alone(root):
    whole, params, _ = opened(root, "tiny")
    tiled = opened(root, "tiny", tile=4)[0]

    def program(codec, side):
        z = jax.ShapeDtypeStruct((1, 1, side, side, 4), jnp.float32)
        return str(jax.make_jaxpr(codec.decode)(params, z)), jax.eval_shape(codec.decode, params, z)

    assert program(whole, 4) == program(tiled, 4)
    (text, shape), (loop, same) = program(whole, 8), program(tiled, 8)
    assert "scan" in loop
    assert "scan" not in text
    assert shape == same
