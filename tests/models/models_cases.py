"""A tiny model of any block, with weights that hide nothing behind zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from random_params import random_params

from dit import config, models
from dit.types import Cond

SHAPE = (2, 4, 6, 3)
BLOCKS = config.names("models.blocks")


def tiny(block="adaln_zero", **kwargs):
    defaults = {
        "unroll": 1,
        "depth": 2,
        "width": 24,
        "heads": 2,
        "in_channels": 3,
        "num_classes": 5,
    }
    return config.resolve("models", "dit", block=block, **(defaults | kwargs))


@functools.cache
def params_of(model, shape=SHAPE, noise=0.3):
    """Random parameters, none of them zero. Not to be changed."""
    return random_params(lambda key: models.init(model, key, shape), noise)


@functools.cache
def abstract(model, shape=SHAPE):
    """The shapes of the parameters."""
    return jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))


def inputs(batch=2, shape=SHAPE, context=None):
    """``(x, t, cond)`` with labels and, if asked for, ``context`` embeddings of 7 channels."""
    draw = np.random.default_rng(1)
    x, t = draw.standard_normal((batch, *shape)), draw.random(batch)
    embeddings = None if context is None else draw.standard_normal((batch, context, 7))
    arrays = [None if a is None else jnp.asarray(a, jnp.float32) for a in (x, t, embeddings)]
    return arrays[0], arrays[1], Cond(label=jnp.arange(batch) % 5, context=arrays[2])


def quick(function):
    """``jax.jit`` for programs that run once: compiling is what takes the time."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


@functools.cache
def jitted(model):
    return quick(models.apply_fn(model))


def run(model, params, x, t, cond):
    return jitted(model)(params, x, t, cond)
