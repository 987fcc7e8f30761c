"""Examples of five shapes and a model for them that is quick to compile, for the tests of training."""

import types

import jax
import jax.numpy as jnp
import training_tiny as tiny

from dit.data import pipeline
from dit.data.sources import mixture

SHAPES = ((1, 9, 9), (1, 9, 12), (1, 12, 9), (2, 9, 9), (3, 9, 9))


def source():
    """Forty small pictures and clips."""
    parts = [
        {"frames": f, "size": (h, w), "speed": (0.0, 1.0), "clips": 12 - 2 * i, "held_out_clips": 4}
        for i, (f, h, w) in enumerate(SHAPES)
    ]
    return mixture.build(parts=tuple({"name": "moving_digits", **part} for part in parts))


def apply_fn(params, x, t, cond):
    """A perceptron of each pixel: quick to compile, and fit for any shape."""
    time, label = (v.reshape(-1, 1, 1, 1, 1) for v in (t, jnp.where(cond.drop, 10, cond.label)))
    return jnp.tanh(x @ params["in"] + time) @ params["out"] + params["label"][label[..., 0]]


MODEL = types.SimpleNamespace(
    encode=tiny.encode,
    PROCESS=tiny.PROCESS,
    LOSS=tiny.LOSS,
    apply_fn=apply_fn,
    init_params=lambda key: {
        "in": jnp.linspace(-1.0, 1.0, 8)[None],
        "out": jnp.linspace(-0.2, 0.1, 8)[:, None] + jax.random.uniform(key),
        "label": jnp.zeros((11, 1)),
    },
    AXES={"in": ("patch", "embed"), "out": ("embed", "patch"), "label": ("classes", "patch")},
)


def batches(size=4, workers=0):
    """Their stream, through the real pipeline."""
    return pipeline.batches(source().train, batch_size=size, seed=0, workers=workers)
