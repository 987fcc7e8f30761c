"""FLOPs counted from shapes equal those in the program, and the published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, models
from dit.scaling.flops import forward_flops, forward_parts, training_flops
from dit.types import Cond

PUBLISHED = {  # multiply-adds in 1e9 at 256 pixels, latents of 32x32x4 (Peebles & Xie 2023)
    "S/2": 6.06,
    "S/4": 1.41,
    "S/8": 0.36,
    "B/2": 23.01,
    "B/4": 5.56,
    "B/8": 1.42,
    "L/2": 80.71,
    "L/4": 19.70,
    "L/8": 5.01,
    "XL/2": 118.64,
    "XL/4": 29.05,
    "XL/8": 7.39,
}


def products(jaxpr) -> int:
    """FLOPs of all matrix products in a program, loops counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            size = np.prod([eqn.invars[0].aval.shape[i] for i in contract], dtype=int)
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape, dtype=int)) * int(size)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += times * products(inner)
    return total


@pytest.mark.parametrize("t_per_frame", [False, True])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("block", config.names("models.blocks"))
def test_count_equals_the_products_in_the_program(block, context, t_per_frame):
    shape = (4, 6, 8, 3)
    model = config.resolve(
        "models",
        "dit",
        depth=3,
        width=24,
        heads=2,
        patch=(2, 2, 2),
        in_channels=3,
        learn_sigma=True,
        num_classes=5,
        context_dim=7 if context else None,
        block=block,
        attention="xla",
    )
    params = jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))
    x, t = jnp.zeros((1, *shape)), jnp.zeros((1, 4) if t_per_frame else (1,))
    cond = Cond(label=jnp.zeros((1,), int), context=jnp.zeros((1, context, 7)) if context else None)
    program = jax.make_jaxpr(models.apply_fn(model))(params, x, t, cond)
    assert forward_flops(model, shape, context, t_per_frame) == products(program.jaxpr)


@pytest.mark.parametrize(("size", "gmacs"), PUBLISHED.items())
def test_published_counts(size, gmacs):
    model = config.resolve(
        "models", "dit", size=size, in_channels=4, learn_sigma=True, num_classes=1000
    )
    assert forward_flops(model, (1, 32, 32, 4)) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_published_count_at_512_pixels():
    model = config.resolve(
        "models", "dit", size="XL/2", in_channels=4, learn_sigma=True, num_classes=1000
    )
    assert forward_flops(model, (1, 64, 64, 4)) / 2e9 == pytest.approx(524.5, rel=0.01)


def test_training_is_three_passes_and_parts_add_up():
    model = config.resolve("models", "dit", size="S/8", in_channels=4)
    shape = (1, 32, 32, 4)
    assert training_flops(model, shape) == 3 * sum(forward_parts(model, shape).values())
