"""The causal video autoencoder: its sizes, what a frame sees, and clips in chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wan_vae_cases as cases

from dit import models
from dit.codecs import autoencoder_chunks
from dit.models import wan_vae
from dit.types import UserError

FRAMES, SIDES = 13, (8, 16)


@pytest.mark.parametrize(
    ("size", "count", "channels", "side_of"),
    [("Wan2.1", 126_892_531, 16, 8), ("Wan2.2", 704_688_668, 48, 16)],
)
def test_the_published_sizes_have_the_published_counts(size, count, channels, side_of):
    model = wan_vae.build(size=size)
    side = 2**model.halvings
    assert models.count_params(models.abstract(model, (1, side, side, 3))) == count
    assert (model.latent_channels, side, model.stride) == (channels, side_of, 4)


def clip(frames=FRAMES, seed=0):
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.uniform(-1, 1, (2, frames, *SIDES, 3)), jnp.float32)


CHUNKS = {"plain": 2, "shortcuts": 1}  # frames of latents; before them come two, and one


@functools.cache
def run_of(kind):
    """``x -> (mean, log-variance, decoded)`` of the whole, of chunks, and of the first frame alone."""
    model, chunk = cases.make(kind), CHUNKS[kind]

    def whole(params, x):
        mean, logvar = model.apply({"params": params}, x, method="encode")
        return mean, logvar, model.apply({"params": params}, mean, method="decode")

    def chunks(params, x):
        mean, logvar = autoencoder_chunks.encode(model, params, x, chunk, lambda x: x)
        return mean, logvar, autoencoder_chunks.decode(model, params, mean, chunk)

    @jax.jit
    def run(params, x):
        return whole(params, x), chunks(params, x), whole(params, x[:, :1])

    return functools.partial(run, cases.params_of(kind))


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "plain")) for k in cases.KINDS]
)
def test_a_clip_in_chunks_is_the_clip_as_a_whole_and_an_image_is_a_clip_of_one_frame(kind):
    whole, chunks, image = run_of(kind)(clip())
    few = 2 ** cases.make(kind).halvings
    assert whole[0].shape == (2, 4, SIDES[0] // few, SIDES[1] // few, 5)
    assert whole[2].shape == (2, FRAMES, *SIDES, 3)
    for got, first, want in zip(chunks, image, whole, strict=True):
        assert np.std(want) > 0.03
        np.testing.assert_allclose(got, want, atol=2e-5)
        np.testing.assert_allclose(first, want[:, :1], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases.KINDS)
def test_later_frames_change_no_earlier_latents_nor_pixels(kind):
    x, run = clip(), run_of(kind)
    mean, logvar, y = run(x)[0]
    for first in (1, 5, 8, 9):  # the first frame that changes; 8 is of the latents of 5 to 8
        other, apart, z = run(x.at[:, first:].set(clip(seed=1)[:, first:]))[0]
        same = 1 + (first - 1) // 4
        for a, b in ((mean, other), (logvar, apart)):
            np.testing.assert_array_equal(a[:, :same], b[:, :same])
            assert (np.abs(a - b)[:, same:].max((0, 2, 3, 4)) > 1e-3).all()
        np.testing.assert_array_equal(y[:, : 4 * same - 3], z[:, : 4 * same - 3])
        assert np.abs(y - z)[:, 4 * same - 3].max() > 1e-3


def test_the_memory_of_chunks_does_not_grow_with_the_clip():
    model = wan_vae.build(width=4, multipliers=(1, 1), temporal=(True,), depth=1)
    params = models.abstract(model, (1, 2, 2, 3))

    def needed(latents):
        def run(params, z):
            return autoencoder_chunks.decode(model, params, z, 1)

        z = jax.ShapeDtypeStruct((1, latents, 32, 32, 16), jnp.float32)
        memory = jax.jit(run).lower(params, z).compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.output_size_in_bytes

    (short, before), (long, after) = needed(5), needed(17)
    assert long - short < 4 * (after - before)  # copies of what is stored, and no activations
    assert short > 20 * before


@pytest.mark.parametrize("frames", [2, 4, 8, 12])
def test_frames_that_do_not_fit_are_refused_with_those_that_do(frames):
    model = cases.make("plain")
    below = (frames - 1) // 4 * 4 + 1
    with pytest.raises(UserError, match=rf"{frames} frames.*1 \+ 4k.*as {below} or {below + 4}"):
        model.check_frames(frames)
    with pytest.raises(UserError, match=r"1 \+ 4k"):
        jax.eval_shape(
            lambda x: autoencoder_chunks.encode(model, {}, x, 1, lambda x: x), clip(frames)
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "Wan2.3"}, "did you mean 'Wan2"),
        ({}, "give a size"),
        ({"width": 8, "temporal": (True,)}, "expected one multiplier a level"),
        ({"width": 8, "patch": 3}, "expected 1 or 2"),
        ({"width": 3, "multipliers": (1, 1)}, "even number"),
        ({"width": 8, "multipliers": (1, 3), "shortcuts": True}, "channels that divide"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        wan_vae.build(**given)
