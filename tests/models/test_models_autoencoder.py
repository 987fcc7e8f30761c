"""The autoencoder's folded pixels and its shortcuts without parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autoencoder_cases import TINY, params_of, shape_of

from dit.models import autoencoder
from dit.models.unet_blocks import fold, match_channels, unfold
from dit.types import UserError

EVEN = TINY | {"in_channels": 4, "shortcuts": True, "middle_attention": False}
EVEN |= {"quant_conv": False, "post_quant_conv": False}


def half(model, params, x, name):
    out = model.apply({"params": params}, x, method=name)
    return np.asarray(out[0] if name == "encode" else out)


def test_folding_is_undone_and_keeps_the_numbers_of_a_pixel_together():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(1, 2, 4, 6, 3)
    folded = fold(x, 2)
    assert folded.shape == (1, 2, 2, 3, 12)
    np.testing.assert_array_equal(folded[0, 1, 0, 2], x[0, 1, 0:2, 4:6].reshape(-1))
    np.testing.assert_array_equal(unfold(folded, 2), x)


def test_channels_are_matched_by_means_and_copies():
    x = jnp.array([1.0, 3.0, 5.0, 9.0])[None, None, None, None]
    np.testing.assert_array_equal(match_channels(x, 2)[0, 0, 0, 0], [2, 7])
    np.testing.assert_array_equal(match_channels(x, 8)[0, 0, 0, 0], [1, 1, 3, 3, 5, 5, 9, 9])
    np.testing.assert_array_equal(match_channels(match_channels(x, 8), 4), x)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_network_that_adds_nothing_passes_means_on_by_its_shortcuts(patch):
    """Every convolution but the first is zero: what is left is linear, and written out here."""
    model = autoencoder.make(**EVEN | {"patch": patch})
    params = jax.tree.map(jnp.zeros_like, params_of(model))
    first = np.random.default_rng(0).normal(size=(4 * patch**2, 8))
    params["encoder"]["embed"]["kernel"] = params["encoder"]["embed"]["kernel"].at[1, 1].set(first)
    x = jax.random.normal(jax.random.key(0), (2, 1, 8 * patch, 8, 4))
    side = 2 * patch
    z = half(model, params, x, "encode")
    assert z.shape == (2, 1, 4, 8 // side, 4)
    folded = fold(x, patch)
    h = folded @ first + match_channels(folded, 8)
    # Halved once: four pixels of 8 channels become one of 32 numbers, then of 8, then of 4.
    wanted = np.asarray(fold(jnp.asarray(h), 2)).reshape(2, 1, 4, -1, 4, 8).mean(-1)
    np.testing.assert_allclose(z, wanted, atol=1e-5)


@pytest.mark.slow
def test_a_decoder_that_adds_nothing_keeps_every_number_of_the_latents():
    """Copies all the way: from what comes out, every latent can be told."""
    model = autoencoder.make(**EVEN)
    params = jax.tree.map(jnp.zeros_like, params_of(model))
    z = jnp.zeros((1, 1, 2, 2, 4))
    slopes = jax.jacobian(lambda z: model.apply({"params": params}, z, method="decode"))(z)
    assert np.linalg.matrix_rank(slopes.reshape(-1, z.size)) == z.size


def test_the_option_changes_no_parameter_and_patches_change_the_counts_they_should():
    plain, more = (autoencoder.make(**EVEN | {"shortcuts": on}) for on in (False, True))
    shapes = [jax.tree.map(jnp.shape, params_of(model)) for model in (plain, more)]
    assert shapes[0] == shapes[1]
    plain, folded = (autoencoder.make(**TINY, patch=patch) for patch in (1, 2))
    assert folded.halvings == plain.halvings + 1
    assert shape_of(folded) == (1, 4, 4, 3)
    a, b = (model.macs((1, 16, 16, 3)) for model in (plain, folded))
    assert a["embed"] == b["embed"]
    assert a["encoder/conv"] == 4 * b["encoder/conv"]


@pytest.mark.parametrize("wrong", [{"in_channels": 3}, {"out_channels": 3}, {"latent_channels": 3}])
def test_channels_that_are_no_multiples_are_refused(wrong):
    with pytest.raises(UserError, match="got a shortcut"):
        autoencoder.make(**EVEN | wrong)


def test_widths_of_the_levels_need_not_be_multiples():
    """Residual blocks change them, which have projections on their shortcuts."""
    model = autoencoder.make(**EVEN | {"widths": (8, 12)})
    x = jnp.zeros((1, *shape_of(model)))
    params = jax.tree.map(jnp.asarray, params_of(model))
    assert half(model, params, x, "encode").shape == (1, 1, 1, 1, 4)
