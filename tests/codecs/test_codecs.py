"""Codecs: decode undoes encode, at the scale they state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config
from dit.codecs import latent, pixel
from dit.types import UserError

PIXELS = jnp.arange(256, dtype=jnp.uint8).reshape(2, 1, 8, 16, 1)


@pytest.mark.parametrize("name", ["latent", "pixel"])
def test_round_trip_inside_jit(name):
    codec = config.resolve("codecs", name)
    x = (
        PIXELS
        if codec.pixels
        else jnp.linspace(-9, 9, 256, dtype=jnp.float16).reshape(PIXELS.shape)
    )
    z = jax.jit(codec.encode)({}, x)
    assert jnp.issubdtype(z.dtype, jnp.floating)
    assert z.shape[1:] == codec.encoded_shape(x.shape[1:])
    back = np.asarray(jax.jit(codec.decode)({}, z))
    want = x / 127.5 - 1.0 if codec.pixels else x
    np.testing.assert_allclose(back, want, atol=2e-6)


def test_pixels_span_the_scale_and_decode_clips():
    codec = pixel.build(scale=0.5)
    z = codec.encode({}, PIXELS)
    assert (float(z.min()), float(z.max())) == (-0.5, 0.5)
    wild = jnp.array([-3.0, 0.25, 3.0]).reshape(1, 1, 1, 3, 1)
    np.testing.assert_allclose(codec.decode({}, wild).ravel(), [-1, 0.5, 1])


def test_latents_are_shifted_then_scaled():
    x = jnp.array([1.0, 2.0]).reshape(1, 1, 1, 2, 1)
    z = latent.build(scale=2.0, shift=0.5).encode({}, x)
    np.testing.assert_allclose(z.ravel(), [1.0, 3.0])


def test_the_wrong_kind_of_data_is_refused():
    with pytest.raises(UserError, match="uint8"):
        pixel.build().encode({}, PIXELS.astype(jnp.float32))
    with pytest.raises(UserError, match="floating"):
        latent.build().encode({}, PIXELS)
    for codec in (pixel, latent):
        with pytest.raises(UserError, match="scale"):
            codec.build(scale=0.0)


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        assert pixel.build().encode({}, jnp.asarray(PIXELS)).dtype == jnp.float64
