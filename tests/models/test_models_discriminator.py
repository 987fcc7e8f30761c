"""The patch discriminator: what a logit sees, what it costs, and that examples do not meet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import models
from dit.config import resolve
from dit.parallel.rules import RULES, is_axes
from dit.scaling.jaxpr_flops import count_flops
from dit.types import Cond, UserError


@functools.cache
def made(depth, side, frames=1):
    model = resolve("models.discriminators", "patch", width=8, depth=depth)
    params = jax.jit(lambda key: models.init(model, key, (frames, side, side, 3)))(
        jax.random.key(0)
    )
    return model, jax.tree.map(lambda p: p if p.ndim < 4 else 10 * p, params)


def logits(model, params, x):
    return models.apply_fn(model)(params, x, jnp.zeros(len(x)), Cond())


@pytest.mark.parametrize(("depth", "seen", "side"), [(1, 16, 32), (2, 34, 64), (3, 70, 128)])
def test_a_logit_sees_so_many_pixels(depth, seen, side):
    """But for the norms, which see the whole picture: here they are the identity."""
    kernels, reach = [size for _, size in made(depth, side)[0].layers()], 1
    for stride in reversed(kernels):
        reach = (reach - 1) * stride + 4
    assert reach == seen
    model, params = made(depth, side)
    out = jax.eval_shape(lambda p: logits(model, p, jnp.zeros((2, 1, side, side, 3))), params)
    assert out.shape == (2, 1, side // 2**depth - 2, side // 2**depth - 2, 1)


def test_examples_and_frames_do_not_meet():
    """A logit is the same in another batch: what batch norm would not give."""
    model, params = made(2, 16, frames=2)
    x = np.random.default_rng(0).standard_normal((4, 2, 16, 16, 3)).astype(np.float32)
    run = jax.jit(lambda x: logits(model, params, x))
    whole = run(x)
    np.testing.assert_allclose(run(np.concatenate([x[:1]] * 4))[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(run(x[:, ::-1])[:, ::-1], whole, rtol=1e-5)
    assert np.std(whole) > 0.01


def test_it_equals_the_convolutions_in_torch():
    torch = pytest.importorskip("torch")
    model, params = made(2, 16)
    x = np.random.default_rng(0).standard_normal((2, 1, 16, 16, 3)).astype(np.float32)
    h = torch.tensor(x[:, 0].transpose(0, 3, 1, 2))
    names = ("embed", "conv_1", "conv_2", "final")
    for name, (features, stride) in zip(names, model.layers(), strict=True):
        kernel = torch.tensor(np.array(params[name]["kernel"]).transpose(3, 2, 0, 1))
        bias = params[name].get("bias")
        bias = None if bias is None else torch.tensor(np.array(bias))
        h = torch.nn.functional.conv2d(h, kernel, bias, stride, padding=1)
        if name.startswith("conv"):
            h = torch.nn.functional.group_norm(h, features // 8, eps=1e-6)
        h = h if name == "final" else torch.nn.functional.leaky_relu(h, 0.2)
    wanted = h.numpy().transpose(0, 2, 3, 1)[:, None]
    found = jax.jit(lambda x: logits(model, params, x))(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_it_answers_as_a_network_does():
    model, shape = made(2, 16)[0], (2, 16, 16, 3)
    axes = jax.tree.leaves(models.logical_axes(model, shape), is_leaf=is_axes)
    assert {name for names in axes for name in names} <= RULES.keys()
    params = jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))
    macs = model.macs(shape)
    flops = count_flops(lambda p: logits(model, p, jnp.zeros((1, *shape))).sum(), params)
    assert 2 * sum(macs.values()) == flops
    deep = resolve("models.discriminators", "patch", depth=3)
    with pytest.raises(UserError, match="got frames of 8x8 for a discriminator of depth 3"):
        models.init(deep, jax.random.key(0), (1, 8, 8, 3))
