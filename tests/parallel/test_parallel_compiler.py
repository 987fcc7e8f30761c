"""The compiler's options by program."""

import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.parallel import compiler

X, Y = jax.random.normal(jax.random.key(0), (2, 12, 128, 64))


def scores(x, y):
    return jnp.einsum("bnd,bmd->bnm", x, y)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="XLA has oneDNN on x86 alone")
def test_batched_products_go_to_onednn_and_come_back_the_same():
    given = compiler.options("cpu")
    compiled = jax.jit(scores, compiler_options=given).lower(X, Y).compile()
    assert "__onednn_fusion" in compiled.as_text()
    assert "__onednn_fusion" not in jax.jit(scores).lower(X, Y).compile().as_text()
    expected = np.einsum("bnd,bmd->bnm", np.float64(X), np.float64(Y))
    np.testing.assert_allclose(compiled(X, Y), expected, atol=5e-5)


def test_other_platforms_and_a_jaxlib_without_the_options_get_none(monkeypatch):
    assert compiler.options("tpu") is None
    monkeypatch.setattr(compiler, "CPU", {"xla_cpu_no_such_option": True})
    compiler._known.cache_clear()
    assert compiler.options("cpu") is None
    compiler._known.cache_clear()
