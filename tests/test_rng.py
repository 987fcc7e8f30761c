"""Every key of the project is a Threefry key of a 32-bit seed, whatever JAX's default generator is."""

import ast
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import devices

from dit import rng
from dit.sampling.sample import sample_keys
from dit.types import UserError

ROOT = pathlib.Path(__file__).parent.parent


def test_a_root_is_the_key_that_jax_makes_of_the_seed():
    for seed in (0, 7, 2**31, 2**32 - 1):
        assert jnp.array_equal(
            jax.random.key_data(rng.root(seed)), jax.random.key_data(jax.random.key(seed))
        )


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64, True])
def test_a_seed_that_would_lose_bits_is_refused(seed):
    with pytest.raises(UserError, match="from 0 to 4294967295"):
        rng.root(seed)


@pytest.mark.parametrize("make", [jax.random.PRNGKey, lambda s: jax.random.key(s, impl="rbg")])
@pytest.mark.parametrize("use", [sample_keys, lambda k, n: rng.per_sample(k, jnp.arange(n))])
def test_keys_whose_draws_depend_on_the_batch_are_refused(make, use):
    with pytest.raises(UserError, match=r"dit\.rng\.root"):
        use(make(0), 2)


def test_nothing_else_makes_keys():
    """Calls of ``jax.random.key`` and ``PRNGKey``, which take JAX's default generator."""
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sorted((ROOT / "dit").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("key", "PRNGKey")
        if ast.unparse(node.value).endswith("random") and file.name != "rng.py"
    ]
    assert not found


def test_another_default_generator_changes_nothing():
    code = (
        "import jax, jax.numpy as jnp; from dit import rng\n"
        "for b in (1, 3): print(rng.normal(rng.per_sample(rng.root(5), jnp.arange(b)), (2,))[0])"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "JAX_DEFAULT_PRNG_IMPL": kind, "XLA_FLAGS": devices()},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for kind in ("threefry2x32", "rbg", "unsafe_rbg")
    ]
    assert said[0][0] == said[0][1]
    assert said[0] == said[1] == said[2]


def test_keys_of_two_words_go_on_where_those_of_one_end():
    key = rng.root(3)
    small = [0, 1, 77, 2**31, 2**32 - 1]
    one = jax.random.key_data(rng.per_sample(key, jnp.asarray(np.array(small, np.uint32))))
    two = jax.random.key_data(rng.per_sample(key, jnp.asarray(rng.words(small))))
    assert jnp.array_equal(one, two)
    wide = [low + (high << 32) for high in (0, 1, 2, 2**31) for low in small]
    keys = jax.random.key_data(rng.per_sample(key, jnp.asarray(rng.words(wide))))
    assert len({tuple(k) for k in np.asarray(keys).tolist()}) == len(wide)
    np.testing.assert_array_equal(rng.words([2**32 + 5]), [[1, 5]])
