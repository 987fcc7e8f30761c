"""What the policies of ``models/remat.py`` spare the backward pass, in the program that they make."""

import collections
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from dit.models.attention import attention
from dit.models.kernels import splash
from dit.models.remat import POLICIES, remat_layer


def counted(jaxpr, found=None):
    """How often each primitive is in a program, inside others too; what gives nothing is dropped."""
    found = collections.Counter() if found is None else found
    for equation in jaxpr.eqns:
        if not equation.outvars:
            continue
        found[equation.primitive.name] += 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            counted(inner, found)
    return found


def gradients(attend, policy):
    """The jaxpr of the gradients of a layer under a policy, and the gradients as a function."""

    def layer(kernel, x):
        q, k, v = jnp.split(jnp.einsum("bnhd,de->bnhe", x, kernel), 3, -1)
        return jnp.square(attend(q, k, v)).sum()

    made = jax.grad(remat_layer(layer, policy), argnums=(0, 1))
    keys = jax.random.split(jax.random.key(0))
    arrays = jax.random.normal(keys[0], (8, 24)), jax.random.normal(keys[1], (1, 128, 2, 8))
    return counted(jax.make_jaxpr(made)(*arrays).jaxpr), partial(jax.jit(made), *arrays)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_fused_kernel_runs_again_only_where_nothing_of_it_is_kept(policy):
    """Its backward pass is two kernels, one for the queries and one for keys and values."""
    found, _ = gradients(lambda *a: splash.attend(*a, None, interpret=True), policy)
    forward = {"none": 1, "attention": 1, "dots_attention": 1}.get(policy, 2)
    assert found["pallas_call"] == forward + 2


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_the_same_and_products_made_again_as_few_as_it_says(policy):
    attend = partial(attention, implementation="xla")
    found, made = gradients(attend, policy)
    for got, want in zip(made(), gradients(attend, "none")[1](), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    again = {"none": 0, "all_dots": 0, "dots_attention": 1, "dots": 2, "attention": 2, "full": 3}
    assert found["dot_general"] == 3 + 6 + again[policy]
