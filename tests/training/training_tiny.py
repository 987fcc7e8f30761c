"""A very small model and its data, for the tests of training: quick to compile, no other room."""

import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np

from dit.data import pipeline
from dit.data.source import ArraySplit
from dit.diffusion.paths import linear
from dit.diffusion.predictions import velocity
from dit.diffusion.process import Process
from dit.diffusion.times import uniform
from dit.diffusion.weights import none
from dit.objectives import denoise
from dit.parallel.mesh import make_mesh
from dit.training import ema as averages
from dit.training import optimizer as optimizers
from dit.training import state as states
from dit.training import step as steps

SHAPE = (1, 4, 4, 1)  # 16 numbers an example
WIDTH, LAYERS, CLASSES = 16, 2, 10
AXES = {
    "in": {"kernel": ("patch", "embed"), "bias": ("embed",)},
    "label": ("classes", "embed"),
    "blocks": {
        "up": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
        "down": {"kernel": ("layers", "mlp", "embed"), "bias": ("layers", "embed")},
    },
    "out": {"kernel": ("embed", "patch"), "bias": ("patch",)},
}
SHAPES = {
    "in": {"kernel": (16, WIDTH), "bias": (WIDTH,)},
    "label": (CLASSES + 1, WIDTH),
    "blocks": {
        "up": {"kernel": (LAYERS, WIDTH, 2 * WIDTH), "bias": (LAYERS, 2 * WIDTH)},
        "down": {"kernel": (LAYERS, 2 * WIDTH, WIDTH), "bias": (LAYERS, WIDTH)},
    },
    "out": {"kernel": (WIDTH, 16), "bias": (16,)},
}


def is_shape(x):
    return isinstance(x, tuple)


def init_params(key):
    """Numbers without a pattern, and a little of the key: sines compile much faster than draws."""
    leaves, tree = jax.tree.flatten(SHAPES, is_leaf=is_shape)
    shift = jax.random.uniform(key)
    arrays = [
        0.2 * jnp.sin(shift + 1e3 * i + 7.3 * jnp.arange(math.prod(s), dtype=jnp.float32) ** 1.3)
        for i, s in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, [a.reshape(s) for a, s in zip(arrays, leaves, strict=True)])


def apply_fn(params, x, t, cond):
    h = x.reshape(x.shape[0], -1) @ params["in"]["kernel"] + params["in"]["bias"][None]
    label = jnp.where(cond.drop, CLASSES, cond.label)
    h = h + params["label"][label] + t[:, None]

    def block(h, p):
        inner = jax.nn.gelu(h @ p["up"]["kernel"] + p["up"]["bias"][None])
        return h + inner @ p["down"]["kernel"] + p["down"]["bias"][None], None

    h, _ = jax.lax.scan(block, h, params["blocks"])
    return (h @ params["out"]["kernel"] + params["out"]["bias"][None]).reshape(x.shape)


PROCESS = Process(linear.build(), velocity.build())
LOSS = denoise.build(times=uniform.build(), weight=none.build())


def encode(params, x, key=None, ids=None):
    return x / 127.5 - 1.0


def batch(start, size=16):
    ids = np.arange(start, start + size)
    pixels = [np.random.default_rng(i).integers(0, 256, SHAPE) for i in ids]
    return {
        "x": np.stack(pixels).astype(np.uint8),
        "label": (ids % CLASSES).astype(np.int32),
        "id": ids.astype(np.int32),
    }


def batches(size=16, seed=0, workers=0):
    """Endless shuffled batches of 64 examples, through the real pipeline."""
    examples = batch(0, 64)
    split = ArraySplit(examples["x"], examples["label"], fingerprint="tiny")
    return pipeline.batches(split, batch_size=size, seed=seed, workers=workers)


def setup(
    *,
    optimizer=None,
    schedule=None,
    ema=None,
    sizes=None,
    devices=1,
    log_every=5,
    total=100,
    of=None,
    bare=False,
    companions=None,
    frozen=None,
):
    """Everything a step needs, as a namespace: create, train_step, report, shardings, mesh, state.

    ``of``: another objective; ``bare``: none at all, only to describe the state. ``companions(make)``:
    what is trained beside the model, by name, with ``make(axes, start)`` the optimizer; ``frozen``: the
    parameters of what is not.
    """
    s = types.SimpleNamespace()
    s.mesh = make_mesh(sizes or {"data": -1}, jax.devices()[:devices])
    s.ema = averages.build(**(ema or {"half_lives": (10.0, 100.0)}))

    def make(axes, start=0):
        return optimizers.build(
            optimizer or {"name": "adamw", "lr": 1e-2},
            schedule or {"name": "constant"},
            steps=total,
            axes=axes,
            start=start,
        )

    s.optimizer = make(AXES)
    beside = {"companions": companions(make) if companions else {}}
    held = {"frozen": frozen or {}}
    s.of = of or steps.objective(LOSS, apply_fn, PROCESS, encode)
    s.key = jax.random.key(0)
    params = jax.eval_shape(init_params, s.key)
    names = [] if bare else steps.metric_names(s.of, params, batch(0), s.key, **beside, **held)
    s.create = states.creator(init_params, s.optimizer, s.ema, names, **beside)
    s.abstract = jax.eval_shape(s.create, s.key)
    s.shardings = states.state_shardings(s.abstract, AXES, s.mesh, **beside)
    s.init = jax.jit(s.create, out_shardings=s.shardings)
    s.train_step = steps.make_train_step(
        s.of,
        s.optimizer,
        s.ema,
        mesh=s.mesh,
        shardings=s.shardings,
        log_every=log_every,
        t_range=(0.0, 1.0),
        **beside,
        **held,
    )
    s.report = steps.make_report(s.optimizer, s.shardings, s.mesh)
    return s


def run(s, steps_, start=0, state=None, size=16):
    """``steps_`` steps from batch ``start``; the state and the losses."""
    state = s.init(s.key) if state is None else state
    losses = []
    for i in itertools.islice(itertools.count(start), steps_):
        state, metrics = s.train_step(state, batch(i * size, size), s.key)
        losses.append(float(metrics["loss"]))
    return state, losses


def trees_equal(a, b):
    same = jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)
    return all(jax.tree.leaves(same))
