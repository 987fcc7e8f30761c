"""Patches, position tables and rotary angles against formulas written another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.models import patchify, positions
from dit.models.embeddings import sinusoids
from dit.models.remat import POLICIES
from dit.parallel.mesh import make_mesh
from dit.parallel.rules import in_force
from dit.types import UserError


def test_patches_are_cut_in_raster_order_and_put_back():
    x = jnp.arange(2 * 4 * 4 * 6 * 3.0).reshape(2, 4, 4, 6, 3)
    tokens = patchify.patchify(x, (2, 2, 3))
    assert tokens.shape == (2, 2 * 2 * 2, 2 * 2 * 3 * 3)
    n = 0
    for f in (0, 2):
        for y in (0, 2):
            for left in (0, 3):
                cut = x[:, f : f + 2, y : y + 2, left : left + 3].reshape(2, -1)
                np.testing.assert_array_equal(tokens[:, n], cut)
                n += 1
    np.testing.assert_array_equal(patchify.unpatchify(tokens, (2, 2, 3), (4, 4, 6)), x)


def test_positions_are_those_of_the_tokens():
    x = jnp.stack(jnp.meshgrid(*map(jnp.arange, (4, 4, 6)), indexing="ij"), -1)[None] / 1.0
    corner = patchify.patchify(x, (2, 2, 3))[..., :3]
    at = patchify.positions((4, 4, 6), (2, 2, 3))
    np.testing.assert_array_equal(at * jnp.array([2.0, 2, 3])[None, None], corner)


def test_a_patch_of_one_number():
    assert patchify.as_patch(4) == (1, 4, 4)
    with pytest.raises(UserError, match="positive"):
        patchify.as_patch((1, 0, 2))
    with pytest.raises(UserError, match="5x4"):
        patchify.grid((1, 5, 4), (1, 2, 2))


def image_table(height, width, d):
    """The original's table of an image, one number at a time."""
    table = np.zeros((height * width, d))
    for n in range(height * width):
        for c in range(d):
            where = n % width if c < d // 2 else n // width  # W in the first half
            i = c % (d // 4)
            angle = where / 10000 ** (i / (d // 4))
            table[n, c] = np.sin(angle) if c % (d // 2) < d // 4 else np.cos(angle)
    return table


@pytest.mark.parametrize(("height", "width", "d"), [(4, 4, 16), (3, 7, 24), (16, 2, 8)])
def test_sincos_of_an_image_is_the_originals(height, width, d):
    got = positions.sincos(patchify.positions((1, height, width), (1, 1, 1)), d)
    np.testing.assert_allclose(got[0], image_table(height, width, d), atol=2e-6)


def test_sincos_of_a_video_adds_time_to_the_image():
    d = 16
    got = positions.sincos(patchify.positions((3, 2, 2), (1, 1, 1)), d)[0].reshape(3, 4, d)
    np.testing.assert_allclose(got[0], image_table(2, 2, d), atol=1e-6)
    angle = np.arange(3)[:, None] / 10000 ** (np.arange(d // 2) / (d // 2))
    time = np.concatenate([np.sin(angle), np.cos(angle) - 1], axis=1)
    np.testing.assert_allclose(got - got[:1], np.repeat(time[:, None], 4, axis=1), atol=1e-6)
    assert len(np.unique(np.round(got.reshape(12, d), 4), axis=0)) == 12


def test_sincos_needs_quarters():
    with pytest.raises(UserError, match="multiple of 4"):
        positions.sincos(jnp.zeros((1, 1, 3)), 18)


def test_rotary_is_multiplication_by_unit_complex_numbers():
    axes, theta = (4, 2, 6), 100.0
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 5, 3, 12)).astype(np.float32)
    at = draw.uniform(0, 9, (2, 5, 3)).astype(np.float32)
    table = positions.rotary(jnp.asarray(at), axes, theta)
    got = positions.rotate(jnp.asarray(x), table)
    angle = np.concatenate(
        [at[..., a : a + 1] * theta ** (-2 * np.arange(s // 2) / s) for a, s in enumerate(axes)], -1
    )
    turned = (x[..., :6] + 1j * x[..., 6:]) * np.exp(1j * angle)[:, :, None]
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tpu_turns_whole_heads_to_the_same_values_and_gradients(dtype, monkeypatch):
    """Where a product is exact it is on the CPU too; no policy keeps it."""
    draw = np.random.default_rng(0)
    x, g = (jnp.asarray(draw.standard_normal((2, 5, 3, 12)), dtype) for _ in range(2))
    table = positions.rotary(jnp.asarray(draw.uniform(0, 9, (2, 5, 3)), jnp.float32), (4, 2, 6))

    def turned(x):
        return positions.rotate(x, table)

    def all_of(x, g):
        y, pull = jax.vjp(turned, x)
        return y, pull(g)[0], jax.jvp(turned, (x,), (g,))[1]

    expected = all_of(x, g)
    monkeypatch.setattr(positions, "platform", lambda: "tpu")
    found = all_of(x, g)
    assert "dot_general" in str(jax.make_jaxpr(turned)(x))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(
            a.astype(np.float32), b.astype(np.float32), rtol=jnp.finfo(dtype).eps, atol=1e-6
        )
    squared = jax.checkpoint(lambda x: turned(x) ** 2, policy=POLICIES["dots"])
    kept = [r.shape for r in jax.tree.leaves(jax.vjp(squared, x)[1])]
    assert kept.count(x.shape) == 1  # x itself


def test_what_a_tpu_has_turned_is_short_before_it_is_exchanged_for_heads(monkeypatch):
    """Else the exchange moves to the wide numbers in between: twice the bytes, and copies."""
    monkeypatch.setattr(positions, "platform", lambda: "tpu")
    x = jnp.zeros((2, 8, 4, 12), jnp.bfloat16)
    table = positions.rotary(jnp.zeros((1, 8, 3)), (4, 4, 4))
    mesh = make_mesh({"fsdp": 2, "context": 4}, jax.devices()[:8])
    with in_force(mesh):
        last = jax.make_jaxpr(lambda x: positions.rotate(x, table))(x).eqns[-1]
    assert last.primitive.name == "sharding_constraint"
    assert last.outvars[0].aval.dtype == jnp.bfloat16
    assert last.params["sharding"].spec[1] == "context"


def test_rotary_products_depend_on_differences_only():
    draw = np.random.default_rng(0)
    q, k = (jnp.asarray(draw.standard_normal((1, 1, 1, 12)), jnp.float32) for _ in range(2))
    axes = positions.default_axes(12)
    assert sum(axes) == 12

    def product(p, other):
        q_, k_ = (
            positions.rotate(x, positions.rotary(jnp.asarray(at, jnp.float32)[None, None], axes))
            for x, at in ((q, p), (k, other))
        )
        return float((q_ * k_).sum())

    assert product([3, 1, 4], [1, 5, 9]) == pytest.approx(product([5, -4, 1], [3, 0, 6]), abs=1e-4)
    for other in ([2, 5, 9], [1, 6, 9], [1, 5, 8]):
        assert abs(product([3, 1, 4], other) - product([3, 1, 4], [1, 5, 9])) > 1e-3


def test_an_images_rotary_does_not_turn_with_time():
    table = positions.rotary(patchify.positions((1, 2, 2), (1, 1, 1)), (4, 4, 4))
    np.testing.assert_array_equal(table[0][..., :2], 1)
    np.testing.assert_array_equal(table[1][..., :2], 0)


@pytest.mark.parametrize("head_dim", [8, 12, 64, 72, 128])
def test_default_axes_are_valid(head_dim):
    positions.check_axes(positions.default_axes(head_dim), head_dim)


def test_time_sinusoids():
    """``[cos, sin]`` with divisor 128; 127 on request (Peebles & Xie's code, and diffusers')."""
    t = jnp.array([0.0, 3.5, 999.0])
    for denominator in (None, 127.0):
        w = 10000 ** (-np.arange(128) / (denominator or 128))
        angle = np.asarray(t)[:, None] * w
        expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
        np.testing.assert_allclose(sinusoids(t, 256, denominator), expected, atol=1e-4)
