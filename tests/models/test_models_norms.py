"""Norms against float64, far from zero mean too, in every type and on every platform; with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.models import layers

NORMS = {"layer": layers.layer_norm, "rms": layers.rms_norm}
EPS = 1e-6


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def where(request, monkeypatch):
    monkeypatch.setattr(layers, "platform", lambda: request.param)
    return request.param


def rows(ratio, dtype, d=384):
    """Rows of deviation 1 and of mean ``ratio``, and a gradient of the output."""
    draw = np.random.default_rng(0)
    x = ratio + draw.standard_normal((16, d))
    return jnp.asarray(x, dtype), jnp.asarray(draw.standard_normal((16, d)), jnp.float32)


def both(kind, x, g):
    """The output, and the gradient of its product with ``g``."""
    out, back = jax.vjp(lambda x: NORMS[kind](x, EPS), x)
    return np.asarray(out, np.float64), np.asarray(back(g.astype(out.dtype))[0], np.float64)


def exact(kind, x, g):
    with jax.enable_x64(True):
        return both(kind, jnp.asarray(np.asarray(x, np.float64)), jnp.asarray(g, jnp.float64))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("ratio", [0.0, 3.0, 100.0, 1000.0, 4000.0])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_that_of_float64(where, kind, ratio, dtype):
    x, g = rows(ratio, dtype)
    (out, grad), (out64, grad64) = both(kind, x, g), exact(kind, x, g)
    # What the rounding of the inputs themselves does: all that a norm may add to.
    rounding = float(jnp.finfo(jnp.float32).eps) * max(ratio, 1)
    if dtype == "bfloat16" and where != "cpu" and kind == "layer":
        rounding += 0.1 * 2.0**-16 * ratio**2 / 12 * np.abs(out64).max()
    np.testing.assert_allclose(out, out64, atol=8 * rounding)
    if np.finfo(np.float32).eps * ratio < 1e-3:
        tolerance = {"float32": 0, "bfloat16": 2.0**-8, "float16": 2.0**-10}[dtype]
        scale = np.abs(grad64).max()
        np.testing.assert_allclose(grad, grad64, atol=(tolerance + 8 * rounding) * scale)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ratio", [1000.0, 4000.0])
def test_the_variance_keeps_its_digits_where_the_mean_is_large(where, ratio, dtype):
    x, g = rows(ratio, dtype)
    spread = both("layer", x, g)[0].std(-1)
    np.testing.assert_allclose(spread, exact("layer", x, g)[0].std(-1), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("value", [0.0, 1234.5])
def test_a_constant_row_gives_no_nan(where, kind, value, dtype):
    x = jnp.full((1, 64), value, dtype)
    out, grad = both(kind, x, jnp.ones((1, 64)))
    assert np.isfinite(out).all()
    assert np.isfinite(grad).all()
    if kind == "layer":
        assert np.abs(out).max() < 1e-2
