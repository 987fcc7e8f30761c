"""Noise that compiles at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import rng


@pytest.fixture
def cheap_noise(monkeypatch):
    """Waves in the place of Gaussian noise, each sample's a function of its key alone.

    Threefry takes a second to compile: too long for tests which ask nothing more of the noise.
    """

    def normal(keys, shape, dtype=jnp.float32):
        phase = (jax.random.key_data(keys)[:, :1] & 0xFFFF).astype(jnp.float32)
        wave = jnp.cos(phase + 3.0 * jnp.arange(int(np.prod(shape)))[None])
        return (1.4 * wave).reshape(len(keys), *shape).astype(dtype)

    monkeypatch.setattr(rng, "normal", normal)
